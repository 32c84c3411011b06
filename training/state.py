"""Everything that a run holds, written so that a killed process loses at most the steps since the last save."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


class Ema:
    """Exponential moving average of a model's parameters."""

    def __init__(self, model, decay: float):
        self.decay = decay
        self.values = {name: param.detach().clone() for name, param in model.named_parameters()}

    @torch.no_grad()
    def update(self, model, step: int) -> None:
        decay = min(self.decay, step / (step + 20))
        names, params = zip(*model.named_parameters())
        torch._foreach_lerp_([self.values[name] for name in names], list(params), 1 - decay)


def save(directory: Path, step: int, model, ema: Ema, optimizers, keep: int) -> None:
    """Write `step_N/` under a temporary name, flush it, rename it; then drop all but the newest `keep`."""
    target = directory / f"step_{step:07d}"
    temporary = directory / f".writing_{step}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({name: param.detach().contiguous() for name, param in model.named_parameters()},
              temporary / "model.safetensors")
    save_file(ema.values, temporary / "ema.safetensors")
    torch.save([optimizer.state_dict() for optimizer in optimizers], temporary / "optimizers.pt")
    (temporary / "state.json").write_text(json.dumps({"step": step}))
    for file in temporary.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    for old in checkpoints(directory)[:-keep]:
        shutil.rmtree(old)


def checkpoints(directory: Path) -> list[Path]:
    return sorted(directory.glob("step_*"))


def resume(directory: Path, model, ema: Ema, optimizers) -> int:
    """Load the newest checkpoint into the given objects; returns its step, 0 if there is none."""
    found = checkpoints(directory)
    if not found:
        return 0
    params = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in load_file(found[-1] / "model.safetensors").items():
            params[name].copy_(value)
    ema.values = load_file(found[-1] / "ema.safetensors")
    for optimizer, state in zip(optimizers, torch.load(found[-1] / "optimizers.pt", weights_only=True)):
        optimizer.load_state_dict(state)
    return json.loads((found[-1] / "state.json").read_text())["step"]
