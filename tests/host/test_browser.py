"""The shipped workflows in the real frontend: one dropped on the canvas and run, all opened, converted and shown."""

import asyncio
import json
import os
from pathlib import Path

import chromium
import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
DROPPED = ROOT / "workflows" / "joint_generation.json"
SHOTS = ROOT / "output" / "tests"
BROWSER = chromium.find()
SIZE = 1600, 1000    # of the window; chromium.FLAGS

pytestmark = pytest.mark.skipif(not BROWSER and not os.environ.get("CI"),
                                reason="no Chromium here; in CI that is a failure")

# The default workflow is there and nothing (splash screen, dialog) covers the canvas.
READY = "app.graph.nodes.length && document.elementFromPoint(800, 500).id === 'graph-canvas'"
RUN = """(async () => {
  const end = new Promise(done => ["execution_success", "execution_error"].forEach(
    name => app.api.addEventListener(name, event => done([name, event.detail]))));
  await app.queuePrompt(0);
  return await end;
})()"""
# Bring the whole graph into view.
FIT = """(() => {
  const sides = app.graph.nodes.map(n => [n.pos[0], n.pos[1] - 60, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]);
  const [left, top] = [0, 1].map(i => Math.min(...sides.map(s => s[i])));
  const [right, bottom] = [2, 3].map(i => Math.max(...sides.map(s => s[i])));
  const scale = Math.min(%d / (right - left + 200), %d / (bottom - top + 200));
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [100 - left + 60 / scale, 60 - top + 50 / scale];
  app.canvas.setDirty(true, true);
})()""" % SIZE
# Pairs of nodes of which one covers the other, title bars included.
COVERED = """(() => {
  const box = n => [n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]];
  const meet = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  return app.graph.nodes.flatMap((n, i) => app.graph.nodes.slice(i + 1).filter(o => meet(box(n), box(o)))
    .map(o => `${n.id} ${n.type} and ${o.id} ${o.type}`));
})()"""
UNKNOWN = "app.graph.nodes.filter(n => !LiteGraph.registered_node_types[n.type]).map(n => n.type)"


def quiet_frontend(comfy) -> None:
    # Otherwise the first-visit dialog covers the canvas.
    comfy.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Workflow.Persist": False,
                             "Comfy.Minimap.Visible": False})
    SHOTS.mkdir(parents=True, exist_ok=True)


async def drop_and_run(address: str, profile: Path) -> tuple[dict, list]:
    """(the prompt as the frontend converts the workflow, [how the run ended, details])."""
    types = sorted({node["type"] for node in json.loads(DROPPED.read_text(encoding="utf-8"))["nodes"]})
    async with chromium.Page(BROWSER, profile) as page:
        await page.call("Page.navigate", url=address)
        await page.wait_for(READY)
        await page.drop_file(DROPPED, 800, 500)
        await page.wait_for(f"JSON.stringify([...new Set(app.graph.nodes.map(n => n.type))].sort()) === "
                            f"JSON.stringify({json.dumps(types)})")
        prompt = await page.evaluate("app.graphToPrompt().then(both => both.output)")
        end = await page.evaluate(RUN)
        await asyncio.sleep(2)  # the pictures arrive on the canvas after the event
        await page.screenshot(SHOTS / "joint_generation_in_browser.png")
        return prompt, end


def assert_same_prompt(ours: dict, frontend: dict, object_info: dict) -> None:
    """Inputs that only the frontend has, such as the picture of a 3D viewer, do not count."""
    assert set(ours) == set(frontend)
    for node, converted in frontend.items():
        definition = object_info[converted["class_type"]]["input"]
        known = {name for section in ("required", "optional") for name in definition.get(section, {})}
        inputs = {name: value for name, value in converted["inputs"].items() if name.partition(".")[0] in known}
        assert {name: value for name, value in ours[node]["inputs"].items() if name in inputs} == inputs, (
            f"node {node} ({converted['class_type']})")


def test_joint_workflow_runs_from_a_drop_on_the_canvas(comfy, tmp_path, prompt, object_info):
    quiet_frontend(comfy)
    converted, (event, details) = asyncio.run(drop_and_run(comfy.url, tmp_path))
    assert event == "execution_success", details
    assert (SHOTS / "joint_generation_in_browser.png").stat().st_size > 20_000
    assert_same_prompt(prompt("joint_generation"), converted, object_info)


async def open_all(address: str, profile: Path) -> dict[str, dict]:
    """Workflow -> what the frontend makes of it."""
    found = {}
    async with chromium.Page(BROWSER, profile) as page:
        await page.call("Page.navigate", url=address)
        await page.wait_for(READY)
        for path in WORKFLOWS:
            await page.evaluate(f"app.loadGraphData({path.read_text(encoding='utf-8')})")
            await page.evaluate(FIT)
            await asyncio.sleep(0.7)
            found[path.stem] = {"unknown": await page.evaluate(UNKNOWN), "covered": await page.evaluate(COVERED),
                                "prompt": await page.evaluate("app.graphToPrompt().then(both => both.output)")}
            await page.screenshot(SHOTS / f"{path.stem}.png")
        await page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        await asyncio.sleep(2)
        await page.screenshot(SHOTS / "templates.png")
    return found


def test_every_workflow_opens(comfy, tmp_path, prompt, object_info):
    quiet_frontend(comfy)
    found = asyncio.run(open_all(comfy.url, tmp_path))
    assert set(found) == {path.stem for path in WORKFLOWS}
    for name, seen in found.items():
        assert not seen["unknown"], name
        assert not seen["covered"], name
        assert_same_prompt(prompt(name), seen["prompt"], object_info)


# ---- blueprints -------------------------------------------------------------------------------------------------

BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
# Pictures into every open socket of the one node on the canvas, a preview behind every output; then run.
CONNECT = """(async () => {
  const blueprint = app.graph.nodes[0];
  blueprint.inputs.forEach((input, slot) => {
    if (input.type !== 'IMAGE') return;
    const picture = LiteGraph.createNode('EmptyImage');
    app.graph.add(picture);
    picture.pos = [-350, 100 + 200 * slot];
    for (const [name, value] of [['width', 128], ['height', 96], ['color', 0x808080 * (slot + 1) %% 0xffffff]])
      picture.widgets.find(w => w.name === name).value = value;
    picture.connect(0, blueprint, slot);
  });
  blueprint.outputs.forEach((output, slot) => {
    const preview = LiteGraph.createNode('PreviewImage');
    app.graph.add(preview);
    preview.pos = [650 + 260 * (slot %% 3), 100 + 320 * Math.floor(slot / 3)];
    blueprint.connect(slot, preview, 0);
  });
  return %s;
})()""" % RUN


async def run_blueprints(address: str, profile: Path) -> dict[str, dict]:
    """Blueprint -> what the frontend makes of it, and how its run ended."""
    found = {}
    async with chromium.Page(BROWSER, profile) as page:
        await page.call("Page.navigate", url=address)
        await page.wait_for(READY)
        for path in BLUEPRINTS:
            await page.evaluate(f"app.loadGraphData({path.read_text(encoding='utf-8')})")
            await page.wait_for("app.graph.nodes.length === 1 && app.graph.nodes[0].subgraph")
            inner = await page.evaluate("app.graph.nodes[0].subgraph.nodes.map(n => [n.type, !!n.comfyClass])")
            widgets = await page.evaluate("app.graph.nodes[0].widgets.map(w => [w.name, String(w.value)])")
            end = await page.evaluate(CONNECT)
            await page.evaluate(FIT)
            await asyncio.sleep(1.5)
            await page.screenshot(SHOTS / f"blueprint_{path.stem.replace(' ', '_')}.png")
            found[path.stem] = {"inner": inner, "widgets": dict(widgets), "end": end}
    return found


def test_blueprints_are_listed_and_run(comfy, tmp_path):
    listed = {part["name"]: part for part in comfy.get("/global_subgraphs").values()
              if "jodi" in str(part.get("info", part)).lower()}
    assert {path.stem for path in BLUEPRINTS} <= set(listed) and len(BLUEPRINTS) == 3
    quiet_frontend(comfy)
    for name, seen in asyncio.run(run_blueprints(comfy.url, tmp_path)).items():
        assert "JodiLoader" in {kind for kind, _ in seen["inner"]} and all(known for _, known in seen["inner"]), name
        assert seen["end"][0] == "execution_success", (name, seen["end"][1])
        assert {"model_name", "vae_name", "steps", "seed"} <= set(seen["widgets"]), (name, seen["widgets"])
        assert seen["widgets"]["model_name"] == "tiny (bundled)", name
