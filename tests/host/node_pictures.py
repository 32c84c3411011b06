"""Pictures of the nodes for their help pages, as the frontend draws them.

    python tests/host/node_pictures.py --comfyui FOLDER [NAME ...]        writes web/docs/images/NAME.png
"""

import argparse
import asyncio
import base64
import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import chromium  # noqa: E402
from scripts.comfy import Comfy  # noqa: E402

DOCS = ROOT / "web" / "docs"
SCALE, MARGIN = 1.25, 14
# Settings that show more than the first choice does.
SHOWN = {
    "JodiRoleSwitch": {"image": "condition", "depth": "generate", "normal": "generate", "size": "like the picture",
                       **dict.fromkeys(("lineart", "edge", "albedo", "segmentation", "openpose"), "ignore")},
    "JodiJointNetLoader": {"model_name": "diffusers: rgbd_inpaint_sd21b",
                           "text_encoder_name": "checkpoints: v2-1_512-ema-pruned.safetensors",
                           "vae_name": "checkpoints: v2-1_512-ema-pruned.safetensors"},
    "JodiDomain": {"name": "shadow", "domain": "generate"},
    "JodiTextEncode": {"text": "a red house on the left, under a clear blue sky"},
    "JodiLabelConvert": {"kind": "segmentation"},
    "JodiDualDiffusionLoader": {"model_name": "diffusers: dual_diff_sd3_512_base"},
    "JodiDualDiffusionTextEncode": {"text": "a red house beside a lake"},
    "JodiAskImage": {"question": "What colour is the house?", "style": "short"},
    "JodiFillText": {"text": "a {1} house beside a {2}"}, "JodiScoreText": {"text": "a red house beside a lake"},
    "JodiDomainDecode": {"name": "depth"}, "JodiNoise": {"kind": "same for every role choice"},
}
READY = "app.graph && window.LiteGraph && LiteGraph.registered_node_types['JodiLoader']"
PLACE = """(async () => {
  app.graph.clear();
  const node = LiteGraph.createNode(%s);
  app.graph.add(node);
  node.pos = [0, 0];
  for (const [name, value] of Object.entries(%s)) {
    const widget = node.widgets.find(w => w.name === name);
    widget.value = value;
    widget.callback?.(value);
    await new Promise(done => setTimeout(done, 50));
  }
  node.setSize([300, node.computeSize()[1]]);
  app.canvas.ds.scale = %f;
  app.canvas.ds.offset = [120 / %f, 240 / %f];
  app.canvas.setDirty(true, true);
  return [node.size[0], node.size[1]];
})()"""


async def draw(address: str, profile: Path, names: list[str]) -> None:
    async with chromium.Page(chromium.find(), profile) as page:
        await page.call("Page.navigate", url=address)
        await page.wait_for(READY)
        await asyncio.sleep(3)
        for name in names:
            width, height = await page.evaluate(PLACE % (json.dumps(name), json.dumps(SHOWN.get(name, {})),
                                                         SCALE, SCALE, SCALE))
            await asyncio.sleep(0.5)
            shot = Image.open(io.BytesIO(base64.b64decode((await page.call("Page.captureScreenshot"))["data"])))
            # The pack's badge lies above the title.
            left, top = 120 - MARGIN, 240 - int(62 * SCALE)
            box = left, top, int(120 + width * SCALE) + MARGIN, int(240 + height * SCALE) + MARGIN
            canvas = await page.evaluate("(r => [r.left, r.top])(document.querySelector('#graph-canvas')"
                                         ".getBoundingClientRect())")
            picture = shot.convert("RGB").crop([side + int(canvas[number % 2]) for number, side in enumerate(box)])
            (DOCS / "images").mkdir(exist_ok=True)
            picture.save(DOCS / "images" / f"{name}.png", optimize=True)
            print(name, picture.size, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".comfyui" / "ComfyUI", help="the folder with main.py")
    parser.add_argument("names", nargs="*", help="nodes; all by default")
    options = parser.parse_args()
    names = options.names or sorted(page.stem for page in DOCS.glob("*.md"))
    with tempfile.TemporaryDirectory() as folder, Comfy(
            options.comfyui, Path(sys.executable), Path(folder), ROOT, "--cpu") as server:
        server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Workflow.Persist": False,
                                  "Comfy.Minimap.Visible": False})
        asyncio.run(draw(server.url, Path(folder) / "profile", names))


if __name__ == "__main__":
    main()
