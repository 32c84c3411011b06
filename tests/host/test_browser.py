"""The shipped joint workflow in the real frontend: dropped on the canvas, queued, run."""

import asyncio
import json
import os
from pathlib import Path

import chromium
import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "workflows" / "joint_generation.json"
SCREENSHOT = ROOT / "output" / "tests" / "joint_generation_in_browser.png"
BROWSER = chromium.find()

# The default workflow is there and nothing (splash screen, dialog) covers the canvas.
READY = "app.graph.nodes.length && document.elementFromPoint(800, 500).id === 'graph-canvas'"
RUN = """(async () => {
  const end = new Promise(done => ["execution_success", "execution_error"].forEach(
    name => app.api.addEventListener(name, event => done([name, event.detail]))));
  await app.queuePrompt(0);
  return await end;
})()"""


async def drive(address: str, profile: Path) -> tuple[dict, list]:
    """(the prompt as the frontend converts the workflow, [how the run ended, details])."""
    types = sorted({node["type"] for node in json.loads(WORKFLOW.read_text(encoding="utf-8"))["nodes"]})
    async with chromium.Page(BROWSER, profile) as page:
        await page.call("Page.navigate", url=address)
        await page.wait_for(READY)
        await page.drop_file(WORKFLOW, 800, 500)
        await page.wait_for(f"JSON.stringify([...new Set(app.graph.nodes.map(n => n.type))].sort()) === "
                            f"JSON.stringify({json.dumps(types)})")
        prompt = await page.evaluate("app.graphToPrompt().then(both => both.output)")
        end = await page.evaluate(RUN)
        await asyncio.sleep(2)  # the pictures arrive on the canvas after the event
        SCREENSHOT.parent.mkdir(parents=True, exist_ok=True)
        await page.screenshot(SCREENSHOT)
        return prompt, end


@pytest.mark.skipif(not BROWSER and not os.environ.get("CI"), reason="no Chromium here; in CI that is a failure")
def test_joint_workflow_runs_from_a_drop_on_the_canvas(comfy, tmp_path, prompt):
    # Otherwise the first-visit dialog covers the canvas.
    comfy.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Workflow.Persist": False,
                             "Comfy.Minimap.Visible": False})
    converted, (event, details) = asyncio.run(drive(comfy.url, tmp_path))
    assert event == "execution_success", details
    assert SCREENSHOT.stat().st_size > 20_000
    ours = prompt("joint_generation")
    for node, frontend in converted.items():
        assert ours[node]["inputs"] == frontend["inputs"], f"node {node} ({frontend['class_type']})"
    assert set(ours) == set(converted)
