"""Where curves and pictures of a run can be watched: TensorBoard, Weights & Biases. Only process 0 has any."""

import uuid
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from .config import TrainConfig
from .config_file import to_dict


class Board(Protocol):
    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Values by name, such as "domain/depth"; names with the same first part are shown together."""

    def picture(self, step: int, name: str, image: Image.Image) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in OUTPUT/tensorboard. What an earlier process told of steps that are trained again is hidden."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Files:
    """Pictures as files: OUTPUT/pictures/NAME/step_0001000.png."""

    def __init__(self, folder: Path):
        self.folder = folder

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """They are in log.jsonl."""

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        file = self.folder / name / f"step_{step:07d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)

    def close(self) -> None:
        """Nothing is open."""


class WandB:
    """A run of Weights & Biases; its id is kept in OUTPUT/wandb_id, so that a resumed run goes on in it.

    Steps that are trained again have the same values, and W&B keeps the first.
    """

    def __init__(self, config: TrainConfig):
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ImportError(f'watch.wandb = "{config.watch.wandb}" needs the package wandb: pip install wandb'
                              ) from error
        output = Path(config.output)
        known = output / "wandb_id"
        if not known.exists():
            known.write_text(uuid.uuid4().hex[:12])
        self.image = wandb.Image
        self.run = wandb.init(project=config.watch.wandb, id=known.read_text(), resume="allow", name=output.name,
                              dir=str(output), config=to_dict(config))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self.run.log({name: self.image(image)}, step=step)

    def close(self) -> None:
        self.run.finish()


class Boards:
    """Any number of boards as one."""

    def __init__(self, boards: list[Board] = ()):
        self.boards = boards

    @classmethod
    def of_run(cls, config: TrainConfig, step: int) -> "Boards":
        """Those that a run asks for, from a step on. ImportError that says what to install for W&B."""
        boards = [Files(Path(config.output) / "pictures")]
        if config.watch.wandb:
            boards.append(WandB(config))
        if config.watch.tensorboard:
            try:
                boards.append(TensorBoard(Path(config.output) / "tensorboard", step))
            except ModuleNotFoundError:
                print("no TensorBoard: pip install tensorboard, or set watch.tensorboard = false; log.jsonl has all "
                      "values", flush=True)
        return cls(boards)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for board in self.boards:
            board.scalars(step, values)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        for board in self.boards:
            board.picture(step, name, image)

    def close(self) -> None:
        for board in self.boards:
            board.close()
