"""Peak memory of joint upsampling to larger and larger pictures, on a real ComfyUI with the tiny model.

    python tests/host/upsample_memory.py --comfyui FOLDER [--whole] [WIDTH ...]        prints a table; Linux only
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from benchmarks.timing import process_peak  # noqa: E402
from jodi_prompts import joint_prompt, link, node  # noqa: E402
from scripts.comfy import Comfy  # noqa: E402

SCALE, TILE, LARGEST = 4, 256, 8192
WIDTHS = (512, 1024, 2048, 4096)


def upsampling(width: int, whole: bool) -> dict:
    """A picture and its depth, a quarter as high as wide, from a quarter of the size; what comes out is saved.

    whole: without tiles, in the model and in the autoencoder.
    """
    tile = LARGEST if whole else TILE
    prompt = joint_prompt({"image": "generate", "depth": "generate"}, size=(width // SCALE, width // SCALE // 4),
                          steps=1, cfg=1.0)
    prompt["sample"]["inputs"]["model"] = link("tiles")
    return prompt | {
        "tiles": node("JodiTiles", model=link("load"), tile=whole * LARGEST, overlap=0.25),
        "larger": node("JodiUpsample", model=link("load"), vae=link("load", 2), positive=link("roles"),
                       negative=link("roles", 1), samples=link("sample"), what="everything", scale=float(SCALE),
                       start=0.5, tile=tile),
        "again": node("JodiJointSampler", model=link("tiles"), positive=link("larger"), negative=link("larger", 1),
                      latent_image=link("larger", 2), seed=1, steps=2, cfg=1.0, denoise=link("larger", 3)),
        "decode": node("JodiLabelDecode", samples=link("again"), vae=link("load", 2), tile=tile)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".comfyui" / "ComfyUI", help="the folder with main.py")
    parser.add_argument("--whole", action="store_true", help="without tiles, to compare")
    parser.add_argument("widths", nargs="*", type=int, default=WIDTHS)
    options = parser.parse_args()
    print("| size | one picture, MB | peak, MB | above the smallest, MB | in pictures | seconds |\n|" + "---|" * 6)
    smallest = None
    for width in options.widths:
        with tempfile.TemporaryDirectory() as folder, Comfy(
                options.comfyui, Path(sys.executable), Path(folder), ROOT, "--cpu") as server:
            begin = time.monotonic()
            server.run(upsampling(width, options.whole))
            peak, picture = process_peak(server.process.pid) / 1e6, width * width // 4 * 3 * 4 / 1e6
        smallest = smallest or peak
        print(f"| {width}x{width // 4} | {picture:.1f} | {peak:.0f} | {peak - smallest:.0f} | "
              f"{(peak - smallest) / picture:.1f} | {time.monotonic() - begin:.0f} |", flush=True)


if __name__ == "__main__":
    main()
