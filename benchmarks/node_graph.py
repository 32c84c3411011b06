"""The graph of nodes on a ComfyUI with a model of the published sizes and random weights: seconds and memory.

    python benchmarks/node_graph.py --comfyui DIR --tasks perceive1 --pixels 512 --output FILE.md
    python benchmarks/node_graph.py --comfyui DIR --device cuda --vram 0 8 5 --tasks joint perceive1 perceive7

Files of the true sizes are written first (9 GB for 1600M), a fresh server per limit reads them. --vram leaves that many
GiB of the GPU free for the server and holds the rest itself; 0: no limit. Memory is what the server's process takes in
a prompt: resident on a CPU, of the device on a GPU (with what CUDA itself needs).
"""

import argparse
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import timing  # noqa: E402
from benchmarks.cases import SIZES, TASKS, Size, fill, published_steps  # noqa: E402
from benchmarks.graphs import Task, decoding, loader, sampling  # noqa: E402
from benchmarks.performance import heading  # noqa: E402
from benchmarks.report import table  # noqa: E402
from benchmarks.server import Server  # noqa: E402
from jodi_core import weights  # noqa: E402
from jodi_core.models.dcae import DCAE  # noqa: E402
from jodi_core.models.jodi import JodiTransformer, published_name  # noqa: E402
from jodi_core.text import TextConfig, build_gemma  # noqa: E402
from scripts.comfy import Comfy  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
FILE = "random.safetensors"
TEXT = "a red house on the left, a blue car on the right, under a clear blue sky, on green grass"
COLUMNS = ["memory left, GiB", "case", "first picture, s", "next picture, s", "sampling, s", "peak memory, GB"]
GIB = 2 ** 30


def text_config(size: Size) -> TextConfig:
    """Gemma-2-2b where the captions are as wide as its features, else a small one."""
    width = size.config.caption_channels
    large = width == 2304
    return TextConfig(vocab_size=256_000, hidden_size=width, intermediate_size=4 * width,
                      num_hidden_layers=26 if large else 2, num_attention_heads=8 if large else 1,
                      num_key_value_heads=4 if large else 1, prefix="", max_length=size.config.model_max_length)


def write_files(models: Path, size: Size) -> None:
    """Transformer, autoencoder and text encoder in bfloat16, where ComfyUI looks for them."""
    place, text = {"dtype": torch.bfloat16}, text_config(size)
    for kind, config, make in (("transformer", size.config, lambda: JodiTransformer(size.config, **place)),
                               ("autoencoder", size.autoencoder, lambda: DCAE(size.autoencoder, **place)),
                               ("text_encoder", text, lambda: build_gemma(text, **place))):
        tensors = {published_name(name): value for name, value in fill(make(), 0).state_dict().items()}
        if kind == "text_encoder":
            tensors = {f"model.{name}": value for name, value in tensors.items()}
            tensors["spiece_model"] = weights.read_text_encoder(weights.resolve("tiny", kind))[1]["spiece_model"]
        folder = models / weights.HOST_FOLDERS[kind]
        folder.mkdir(parents=True)
        weights.write_model(folder / FILE, kind, config, tensors)


class Memory:
    """Peak of what a server's process takes, from one `reset` to the next. before: what was free when it started."""

    def __init__(self, process: int, device: torch.device, before: int):
        self.process, self.device, self.before = process, device, before
        self.least, self.stopped = before, threading.Event()

    def watch(self) -> None:
        while not self.stopped.wait(0.02):
            self.least = min(self.least, free_on(self.device))

    def reset(self) -> None:
        self.least = self.before
        if self.device.type == "cpu":
            Path(f"/proc/{self.process}/clear_refs").write_text("5")    # VmHWM starts anew; Linux only

    @property
    def peak(self) -> int:
        return timing.process_peak(self.process) if self.device.type == "cpu" else self.before - self.least


def free_on(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


@contextmanager
def only(gib: float, device: torch.device):
    """Leaves so much of the GPU free; 0: all of it."""
    held = None
    if gib:
        surplus = free_on(device) - int(gib * GIB)
        if surplus < 0:
            raise SystemExit(f"--vram {gib:g}: only {free_on(device) / GIB:.1f} GiB of the GPU are free")
        held = torch.empty(surplus, dtype=torch.uint8, device=device)
    yield
    del held
    if gib:
        torch.cuda.empty_cache()


def measured(server: Comfy, options, limit: float, before: int) -> list[list[str]]:
    """Rows of all tasks on one server. The first prompt of a task reads what it needs."""
    talk, rows = Server(server.url), []
    memory = Memory(server.process.pid, torch.device(options.device), before)
    watcher = threading.Thread(target=memory.watch, daemon=True)
    watcher.start()
    picture = talk.upload("given.png", (torch.rand(3, options.pixels, options.pixels) * 255).byte())
    size = {"size": "custom", "size.width": options.pixels, "size.height": options.pixels}
    for name in options.tasks:
        generated, given = TASKS[name]
        task = Task(given, generated, options.steps or published_steps(given))
        whole, sampled = [], []
        memory.reset()
        for seed in range(options.rounds + 1):
            prompt = {"load default": loader(FILE)} | sampling(
                ["load default", 0], task, TEXT, seed, dict.fromkeys(given, picture), steps=task.steps, **size)
            sampled.append(talk.run(prompt)[1])
            outputs, seconds = talk.run(prompt | decoding(task))
            if not outputs.keys() >= set(generated):
                raise RuntimeError(f"{name}: no pictures of {set(generated) - outputs.keys()}")
            whole.append(sampled[-1] + seconds)
        later = [str(timing.Times(tuple(found[1:]))) for found in (whole, sampled)]
        rows.append([f"{limit:g}" if limit else "all", name, f"{whole[0]:.1f}", *later, f"{memory.peak / 1e9:.2f}"])
        print(*rows[-1], file=sys.stderr, flush=True)
    memory.stopped.set()
    watcher.join()
    return rows


def parse(arguments: list[str]):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".comfyui" / "ComfyUI", help="the folder with main.py")
    parser.add_argument("--size", choices=SIZES, default="1600M", help="model")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--vram", nargs="+", type=float, default=[0.0], metavar="GIB", help="0: no limit")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["joint", "perceive1", "perceive7"])
    parser.add_argument("--pixels", type=int, help="side of the pictures; default by model")
    parser.add_argument("--steps", type=int, help="default 20, for perception 10")
    parser.add_argument("--rounds", type=int, default=3, help="pictures after the first one")
    parser.add_argument("--output", type=Path, metavar="FILE.md")
    options = parser.parse_args(arguments)
    options.arguments, options.pixels = arguments, options.pixels or SIZES[options.size].pixels
    if options.device == "cpu" and any(options.vram):
        parser.error("--vram needs --device cuda")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    start, rows = heading("benchmarks/node_graph.py", options, "bfloat16 files"), []
    device = torch.device(options.device)
    extra = ["--cpu"] * (options.device == "cpu")
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder) / "models", SIZES[options.size])
        for limit in options.vram:
            with only(limit, device):
                before = free_on(device)
                with Comfy(options.comfyui, Path(sys.executable), Path(folder), ROOT, *extra) as server:
                    rows += measured(server, options, limit, before)
    text = "\n".join([*start, table(COLUMNS, rows), ""])
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
