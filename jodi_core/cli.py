"""Command line: generate, control, perceive, and look after weight files.

    python -m jodi_core joint --model tiny --prompt "a red house beside a lake" --seed 7 --output pictures
    python -m jodi_core control --condition depth=depth.png --prompt "a house" --output pictures
    python -m jodi_core perceive --image photo.jpg --domains depth,normal --output pictures
    python -m jodi_core jointnet --model rgbd_inpaint_sd21b --base sd21-base --condition image=photo.jpg
"""

import argparse
import json
import sys
import time
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16")
INTERRUPTED = 130    # exit status, as shells have it
STORED_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8_e4m3": "float8_e4m3fn"}


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, 1 if a check failed, 2 for anything wrong with the input (one line says what), 130 interrupt."""
    options = _parser().parse_args(arguments)
    import torch
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except torch.OutOfMemoryError:
        message = "out of memory: try a smaller --count or --size, or --dtype bfloat16"
    except (ValueError, OSError, ImportError) as error:
        message = str(error)
    print(f"error: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jodi_core", description="Jodi: a picture and its labels, jointly.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, purpose in (("joint", "generate a picture and all its labels from a prompt"),
                          ("control", "generate a picture that obeys given labels"),
                          ("perceive", "read labels from a picture")):
        _add_sampling(commands.add_parser(name, help=purpose), name)
    _add_jointnet(commands.add_parser("jointnet", help="picture and depth by JointNet: made, converted, enlarged"))
    command = commands.add_parser("convert", help="rewrite a weight file as one safetensors file with its settings")
    command.add_argument("source", help="file (.pth, .safetensors), hf://owner/name/file, or a folder of Gemma-2 or "
                         "JointNet")
    command.add_argument("target", type=Path)
    command.add_argument("--dtype", choices=(*STORED_DTYPES, *DTYPES), metavar="TYPE",
                         help=f"number type of the weights: {', '.join(STORED_DTYPES)} (default: as stored); with "
                              "fp8_e4m3, what is small and sensitive stays in bf16")
    command.add_argument("--part", choices=("transformer", "autoencoder", "text_encoder"),
                         help="which one, of a file that holds several")
    command.add_argument("--config", type=Path, metavar="JSON", help="settings, where the file does not tell them")
    command.add_argument("--overwrite", action="store_true")
    command.set_defaults(run=_convert)
    command = commands.add_parser("inspect", help="say what a weight file is, without loading it")
    command.add_argument("file", help="file or hf://owner/name/file")
    command.set_defaults(run=_inspect)
    command = commands.add_parser("verify", help="hold weight files against what is known of the published ones")
    command.add_argument("files", nargs="+", metavar="FILE", help="file, folder in bundle layout, or 'tiny'; the check "
                         "of the stored caption needs the transformer and the text encoder")
    command.add_argument("--json", type=Path, metavar="PATH", help="write the report there, too")
    command.set_defaults(run=_verify)
    command = commands.add_parser("download", help="fetch a weight file to where it is looked for")
    command.add_argument("ref", help="hf://owner/name/file, or 'published' for all files of the 1.6B model")
    place = command.add_mutually_exclusive_group(required=True)
    place.add_argument("--to", type=Path, metavar="DIR", help="this folder")
    place.add_argument("--comfyui", type=Path, metavar="DIR", help="the right models folder of this ComfyUI")
    command.set_defaults(run=_download)
    command = commands.add_parser("conformance", help="compare with recorded numbers of the original")
    command.add_argument("directory", type=Path)
    command.set_defaults(run=_conformance)
    return parser


def _add_sampling(parser: argparse.ArgumentParser, mode: str) -> None:
    add = parser.add_argument
    if mode == "perceive":
        add("--image", required=True, type=Path, metavar="FILE", help="the picture to read")
    else:
        add("--prompt", default="", help="what to show")
        add("--negative", default="", metavar="PROMPT", help="what to avoid")
    if mode == "control":
        add("--condition", required=True, action="append", type=_condition, metavar="DOMAIN=FILE",
            help="a label that is given; repeat for several")
    add("--domains", type=lambda text: [name.strip() for name in text.split(",")], metavar="A,B",
        help="domains to generate (default: the image with --condition, otherwise everything that is not given)")
    add("--model", default="tiny", help="'tiny' (default), a folder, a file, or hf://owner/name/file")
    add("--autoencoder", metavar="FILE", help="default: the model's own")
    add("--text-encoder", metavar="FILE", help="default: the model's own")
    add("--steps", type=int, help="default: 20, for perception 10")
    add("--guidance", type=float, help="default: 4.5; without effect on perception")
    _add_run(parser)
    parser.set_defaults(run=_sample, condition=[], image=None, prompt="", negative="")


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seed", type=int, help="default: a new one")
    add("--count", type=int, default=1, help="pictures per prompt")
    add("--size", type=_size, metavar="HxW", help="height x width of the result")
    add("--device", help="cpu, cuda, mps (default: the GPU if there is one)")
    add("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 elsewhere")
    add("--output", type=Path, default=Path("output"), metavar="DIR", help="folder for the pictures (default: output)")


def _add_jointnet(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help="a published folder (unet, jointnet), or a file made of it by `convert`")
    add("--base", required=True, type=Path, help="the folder of Stable Diffusion 2.1 base (512 pixels)")
    add("--prompt", default="", help="what to show")
    add("--negative", default="", metavar="PROMPT", help="what to avoid")
    add("--condition", default=[], action="append", type=_condition, metavar="DOMAIN=FILE",
        help="a given picture, of image or depth; without a mask all of it")
    add("--mask", default=[], action="append", type=_condition, metavar="DOMAIN=FILE",
        help="over a given picture: white is made anew")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--panorama", action="store_true", help="closed, of 360 degrees")
    what.add_argument("--expand", type=int, metavar="WIDTH", help="a panorama so wide around the given image")
    what.add_argument("--upsample", type=_size, metavar="HxW", help="both given pictures, larger and with detail")
    add("--keep", metavar="DOMAIN", help="with --upsample: this one has the size already, and stays")
    add("--strength", type=float, help="share of the steps that is made (default: 1; with --upsample 0.4)")
    add("--steps", type=int, default=50)
    add("--guidance", type=float, default=7.5)
    add("--normalize", action="store_true", help="stretch the depth to its 1 and 99 percent quantiles")
    _add_run(parser)
    parser.set_defaults(run=_jointnet)


def _condition(text: str) -> tuple[str, str]:
    domain, equals, path = text.partition("=")
    if not (domain and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r}: write DOMAIN=FILE, as in depth=depth.png")
    return domain, path


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: write HEIGHTxWIDTH, as in 1024x768")
    return int(height), int(width)


def _sample(options) -> None:
    from .pictures import load_picture
    from .pipeline import JodiPipeline
    named = [*options.condition, *([("image", options.image)] if options.image else [])]
    if len(dict(named)) < len(named):
        raise ValueError("each domain can be given once")
    conditions = {domain: load_picture(path) for domain, path in named}
    pipe = JodiPipeline.from_pretrained(options.model, autoencoder=options.autoencoder,
                                        text_encoder=options.text_encoder, device=options.device,
                                        dtype=_dtype(options.dtype))
    options.output.mkdir(parents=True, exist_ok=True)
    height, width = options.size or (None, None)
    with _Progress() as progress:
        result = pipe(options.prompt, conditions=conditions, generate=options.domains,
                      negative_prompt=options.negative, height=height, width=width, steps=options.steps,
                      guidance=options.guidance, seed=options.seed, count=options.count, callback=progress)
    for path in save_pictures(result, options.output, conditions):
        print(path)


def _jointnet(options) -> None:
    from dataclasses import replace
    from functools import partial

    from .jointnet import programs
    from .jointnet.pictures import stretched
    from .jointnet.pipeline import JointNetPipeline
    pictures, masks = dict(options.condition), dict(options.mask)
    how = programs.UPSAMPLING if options.upsample else programs.Sampling()
    how = replace(how, steps=options.steps, guidance=options.guidance,
                  strength=how.strength if options.strength is None else options.strength)
    pipe = JointNetPipeline.from_pretrained(options.model, options.base, device=options.device,
                                            dtype=_dtype(options.dtype))
    if options.expand:
        if "image" not in pictures:
            raise ValueError("--expand needs the picture: --condition image=FILE")
        run = partial(programs.expand, pipe, pictures["image"], options.expand, options.prompt)
    elif options.upsample:
        run = partial(programs.upsample, pipe, pictures, options.upsample, options.prompt, given=options.keep)
    elif options.panorama:
        run = partial(programs.panorama, pipe, options.prompt, size=options.size, pictures=pictures, masks=masks)
    else:
        height, width = options.size or (None, None)
        run = partial(pipe, options.prompt, pictures=pictures, masks=masks, height=height, width=width)
    options.output.mkdir(parents=True, exist_ok=True)
    with _Progress() as progress:
        result = run(how=how, negative_prompt=options.negative, seed=options.seed, count=options.count,
                     callback=progress)
    if options.normalize and "depth" in result.pictures:
        result = replace(result, pictures=result.pictures | {"depth": stretched(result.pictures["depth"])})
    for path in save_pictures(result, options.output):
        print(path)


def save_pictures(result, folder: Path, conditions: dict | None = None) -> list[Path]:
    """Write a result into an existing folder and return the files.

    `{seed}_{sample}_{domain}.png` per picture, `..._depth_16bit.png` beside a depth map, and `{seed}_sheet.png` with
    everything, the given pictures (domain -> (1, 3, H, W) in [0, 1]) included. Existing files are replaced.
    """
    from .pictures import contact_sheet, to_pil, to_pil_16bit
    paths = []
    for domain, pictures_B3HW in result.pictures.items():
        for sample, picture_3HW in enumerate(pictures_B3HW):
            stem = f"{result.seed}_{sample:02d}_{domain}"
            paths.append(_save(to_pil(picture_3HW), folder / f"{stem}.png"))
            if domain == "depth":
                paths.append(_save(to_pil_16bit(picture_3HW), folder / f"{stem}_16bit.png"))
    count = len(next(iter(result.pictures.values())))
    shown = {domain: picture.expand(count, -1, -1, -1) for domain, picture in (conditions or {}).items()}
    shown = {f"{domain} (given)": picture for domain, picture in shown.items()} | result.pictures
    return [*paths, _save(contact_sheet(shown), folder / f"{result.seed}_sheet.png")]


def _save(picture, path: Path) -> Path:
    from .files import atomic_target
    with atomic_target(path, overwrite=True) as partial:
        picture.save(partial, format="PNG")
    return path


class _Progress:
    """A line on standard error that counts steps, where somebody can see it; a sampler's callback."""

    def __enter__(self):
        self.start, self.seen = time.monotonic(), sys.stderr.isatty()
        return self

    def __call__(self, step, steps, x, x0):
        if self.seen:
            bar = "#" * (24 * step // steps)
            took = time.monotonic() - self.start
            print(f"\rsampling [{bar:<24}] {step}/{steps}  {took:.1f} s", end="", file=sys.stderr, flush=True)

    def __exit__(self, *error):
        if self.seen:
            print(file=sys.stderr)


def _dtype(name: str | None):
    import torch
    return name and getattr(torch, name)


def _convert(options) -> None:
    from .convert import convert
    try:
        config = json.loads(options.config.read_text()) if options.config else None
    except ValueError as error:
        raise ValueError(f"{options.config} is no JSON file: {error}") from error
    # The recorded model descriptions keep the constructor arguments under "model".
    config = config and config.get("model", config)
    dtype = _dtype(STORED_DTYPES.get(options.dtype, options.dtype))
    kind = convert(options.source, options.target, dtype=dtype, config=config, part=options.part,
                   overwrite=options.overwrite)
    print(f"{options.target} ({kind}, {options.target.stat().st_size / 1e6:.1f} MB)")


def _inspect(options) -> None:
    from .convert import inspect
    about = inspect(options.file)
    own = json.loads(about["metadata"].pop("jodi", "{}"))
    about["metadata"] |= {name: own[name] for name in ("format", "source_sha256") if name in own}
    config = about.pop("config", None)
    for name, value in about.items():
        print(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
    if isinstance(config, dict):
        print("config:")
        for name, value in config.items():
            print(f"  {name}: {json.dumps(value)}")
    elif config:
        print(f"config: {config}")


def _verify(options) -> int:
    from .verify import FAIL, as_json, table, verify
    rows = verify(options.files)
    print(table(rows))
    if options.json:
        options.json.write_text(as_json(rows), encoding="utf-8")
    return int(any(row.verdict == FAIL for row in rows))


def _download(options) -> None:
    from .published import download, download_published
    if options.ref != "published":
        print(download(options.ref, folder=options.to, comfyui=options.comfyui))
    elif options.comfyui is None:
        raise ValueError("'published' needs --comfyui, because its three files belong into three folders")
    else:
        print(*download_published(options.comfyui), sep="\n")


def _conformance(options) -> int:
    from .conformance import main as run
    return run([str(options.directory)])
