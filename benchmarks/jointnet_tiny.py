"""Quality of the tiny JointNet on toy scenes that it has never seen: a Markdown report, and a sheet of pictures.

    python benchmarks/jointnet_tiny.py --output docs/jointnet_tiny.md --sheet docs/images/jointnet_tiny.png
"""

import argparse
import datetime
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.report import table  # noqa: E402
from benchmarks.tiny_quality import (BASELINE_SEEDS, FIRST_SEED, Pictures, machine, mean_maps,  # noqa: E402
                                     reconstructed, sampled, say, truth_of)
from jodi_core.files import sha256  # noqa: E402
from jodi_core.jointnet.loading import load_jointnet  # noqa: E402
from jodi_core.metrics import compare, share, unit  # noqa: E402
from jodi_core.pictures import contact_sheet  # noqa: E402
from jodi_core.weights import TINY  # noqa: E402
from training.captions import caption  # noqa: E402
from training.config import StartConfig  # noqa: E402
from training.encoders import Encoders  # noqa: E402
from training.jointnet_pictures import JointNetPictures  # noqa: E402
from training.world import sample_scene  # noqa: E402

GUIDED = 3.0
SHEET_SCENES = 8
FORMATS = {"abs_rel": ("depth AbsRel (lower is better)", ".3f"), "delta1": ("depth delta1", ".3f"),
           "correlation": ("depth correlation", ".3f"), "psnr": ("picture PSNR, dB", ".1f")}
DEFINITIONS = """\
Held-out scenes, seeds from 10 000 000 on, 128x128 pixels, 20 steps. *Mean map*, *autoencoder*, *closed*, AbsRel and
delta1 are those of [tiny_quality.md](tiny_quality.md). Correlation: of the pixels outside the true sky, mean over the
pictures. *Of another sample*: the depth that the model finds in a picture against the depth that it generated with
another one."""


def numbers(found: Pictures, truth: Pictures) -> dict[str, float]:
    """Metric -> value, of depth and picture if they were found."""
    values = {metric: value for (_, metric), value in compare(found, truth).items()}
    return values | ({"correlation": correlation(found["depth"], truth["depth"])} if "depth" in found else {})


def correlation(found_N3HW: torch.Tensor, truth_N3HW: torch.Tensor) -> float:
    """Mean over pictures, of the pixels that are not sky in the truth."""
    rows = [torch.corrcoef(torch.stack([found[land], truth[land]]))[0, 1].nan_to_num()
            for found, truth, land in zip(unit(found_N3HW[:, 0]), unit(truth_N3HW[:, 0]), truth_N3HW[:, 0] > 0)]
    return torch.stack(rows).mean().item()


@dataclass
class Evaluation:
    """All pictures and numbers of one model on `count` scenes; run it once."""

    pipeline: JointNetPictures
    count: int

    def run(self) -> "Evaluation":
        seeds, domains = range(FIRST_SEED, FIRST_SEED + self.count), self.pipeline.domains
        prompts = [caption(sample_scene(seed), seed, shorten=0) for seed in seeds]
        self.truth, training = ({name: pictures[name] for name in domains}
                                for pictures in (truth_of(seeds), truth_of(BASELINE_SEEDS)))
        self.low = numbers(mean_maps(training, self.count), self.truth)
        self.high = numbers(reconstructed(self.pipeline, self.truth), self.truth)
        say("scenes, baseline, autoencoder")
        self.found = sampled(self.pipeline, conditions={"image": self.truth["image"]})
        self.perception = numbers(self.found, self.truth)
        say("depth from pictures")
        self.painted = {guidance: sampled(self.pipeline, prompts, {"depth": self.truth["depth"]}, guidance=guidance)
                        for guidance in (1.0, GUIDED)}
        self.control = {guidance: numbers(found, self.truth)["psnr"] for guidance, found in self.painted.items()}
        say("pictures from depth")
        self.joint = sampled(self.pipeline, prompts, guidance=GUIDED)
        self.again = sampled(self.pipeline, conditions={"image": self.joint["image"]})
        self.agreement = numbers({"depth": self.joint["depth"]}, self.again)
        self.disagreement = numbers({"depth": self.joint["depth"].roll(1, 0)}, self.again)
        say("both")
        return self

    def report(self, command: str, files: list[Path]) -> str:
        def scored(title, form, value, low, high):
            return [title, f"{low:{form}}", f"**{value:{form}}**", f"{high:{form}}", f"{share(value, low, high):.0%}"]
        depth = [name for name in FORMATS if name != "psnr"]
        return "\n\n".join([
            "## Depth from pictures", "The picture given, the empty caption, no guidance.",
            table(["", "mean map", "reached", "autoencoder", "closed"],
                  [scored(*FORMATS[name], self.perception[name], self.low[name], self.high[name]) for name in depth]),
            "## Pictures from depth", "Depth and caption given.",
            table(["", "mean map", "reached", "autoencoder", "closed"],
                  [scored(f"picture PSNR in dB, guidance {guidance:g}", ".1f", value, self.low["psnr"],
                          self.high["psnr"]) for guidance, value in self.control.items()]),
            "## Both from captions",
            f"Guidance {GUIDED:g}. The generated depth against what the model finds in the generated picture.",
            table(["", "of another sample", "reached", "depth of a true picture against the true one"],
                  [[FORMATS[name][0], f"{self.disagreement[name]:.3f}", f"**{self.agreement[name]:.3f}**",
                    f"{self.perception[name]:.3f}"] for name in depth]),
            "## What the numbers mean", DEFINITIONS,
            f"`{command}`, {datetime.date.today()}, {self.count} scenes, {machine(self.pipeline.device)}, "
            f"torch {torch.__version__}.",
            table(["file", "bytes", "sha256"], [[file.name, f"{file.stat().st_size:,}", sha256(file)]
                                                for file in files]), ""])

    def sheet(self, path: Path) -> None:
        """A column per scene: the true picture and depth, the depth found in the picture, the picture made from the
        depth, and both made from the caption."""
        image, depth = self.truth
        rows = (self.truth[image], self.truth[depth], self.found[depth], self.painted[GUIDED][image],
                self.joint[image], self.joint[depth])
        contact_sheet({str(scene + 1): unit(torch.stack([row[scene] for row in rows]))
                       for scene in range(min(SHEET_SCENES, self.count))}).save(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=TINY / "jointnet.safetensors")
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--output", type=Path, required=True, help="Markdown file; what follows its first '## ' is new")
    parser.add_argument("--sheet", type=Path, default=None, help="PNG file to write")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    encoders = Encoders(StartConfig(autoencoder="tiny", text_encoder="tiny"), torch.device("cpu"))
    pipeline = JointNetPictures(load_jointnet(options.model, dtype=torch.float32), encoders)
    evaluation = Evaluation(pipeline, options.scenes).run()
    before = options.output.read_text(encoding="utf-8").partition("\n## Depth from pictures")[0] \
        if options.output.exists() else "# The tiny JointNet\n"
    command = shlex.join(["python", "benchmarks/jointnet_tiny.py", *arguments])
    options.output.write_text(before + "\n" + evaluation.report(command, [options.model]), encoding="utf-8")
    if options.sheet:
        evaluation.sheet(options.sheet)


if __name__ == "__main__":
    main()
