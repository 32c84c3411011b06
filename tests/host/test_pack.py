"""The pack as the host sees it: nodes, help pages, workflows in the template list, and what its import costs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jodi_core.published import JOINTNET_LINKS, model_links
from scripts.comfy import PACK_DIR

ROOT = Path(__file__).resolve().parents[2]
NODES = sorted(page.stem for page in (ROOT / "web" / "docs").glob("*.md"))    # each node has a help page
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))

# What importing the pack adds to what the host itself imports; an empty pack brings in the host's own machinery.
ADDED_BY_IMPORT = """
import asyncio, sys
import comfy.options
comfy.options.enable_args_parsing()
import execution, nodes
for pack in (EMPTY, PACK):
    before = set(sys.modules)
    assert asyncio.run(nodes.load_custom_node(pack, module_parent="custom_nodes"))
ours = PACK.replace(".", "_x_")  # the host names a pack's modules after its path
added = {name.partition(".")[0] for name in set(sys.modules) - before if not name.startswith(ours)}
print(*sorted(added - set(sys.stdlib_module_names) - {"comfyui_version"}))  # the host's own
"""


def test_nodes_appear(comfy, object_info):
    assert NODES == sorted(name for name in object_info if name.startswith("Jodi")), comfy.log_text()
    assert "IMPORT FAILED" not in comfy.log_text()


def test_names_are_our_own(object_info):
    """Nodes and sockets that no other pack can have."""
    ours = {name: part for name, part in object_info.items() if part["python_module"].endswith(PACK_DIR)}
    assert all(name.startswith("Jodi") for name in ours) and len(ours) == len(NODES)

    def sockets(nodes: list) -> set[str]:
        inputs = {kind for part in nodes for section in ("required", "optional")
                  for kind, *_ in part["input"].get(section, {}).values() if isinstance(kind, str)}
        kinds = inputs | {kind for part in nodes for kind in part["output"] if isinstance(kind, str)}
        return {one for kind in kinds for one in kind.split(",")}    # of several that fit
    host = sockets([part for name, part in object_info.items() if name not in ours])
    assert all(kind.startswith("JODI_") for kind in sockets(list(ours.values())) - host)


@pytest.mark.parametrize("name", NODES)
def test_every_input_explains_itself(object_info, name):
    assert object_info[name]["description"] and object_info[name]["search_aliases"]
    for section in ("required", "optional"):
        for key, (_, *options) in object_info[name]["input"].get(section, {}).items():
            assert options and options[0].get("tooltip"), f"{name}.{key} has no tooltip"


@pytest.mark.parametrize("name", NODES)
def test_help_page_is_served(comfy, name):
    page = comfy.fetch(f"/extensions/{PACK_DIR}/docs/{name}.md").decode()
    assert len(page) > 300 and f"](images/{name}.png)" in page
    assert comfy.fetch(f"/extensions/{PACK_DIR}/docs/images/{name}.png")[:4] == b"\x89PNG"


@pytest.mark.parametrize("language", ["de", "zh"])
def test_nodes_are_translated(object_info, language):
    """Names of all nodes and of their inputs; of nested inputs only the English ones exist in the format."""
    translated = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert set(translated) == set(NODES)
    for name in NODES:
        inputs = {key for section in ("required", "optional") for key in object_info[name]["input"].get(section, {})}
        missing = inputs - set(translated[name].get("inputs", {}))
        assert translated[name]["display_name"] and translated[name]["description"] and not missing, (name, missing)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_is_offered_as_a_template(comfy, name):
    assert name in comfy.get("/workflow_templates")[PACK_DIR]
    served = json.loads(comfy.fetch(f"/api/workflow_templates/{PACK_DIR}/{name}.json"))
    assert "MarkdownNote" in {node["type"] for node in served["nodes"]}
    wanted = {"JodiLoader": model_links(), "JodiJointNetLoader": list(JOINTNET_LINKS),
              "JodiDualDiffusionLoader": []}    # folders, of which the frontend can fetch none
    links = [(node["type"], node["properties"]["models"]) for node in served["nodes"] if node["type"] in wanted]
    assert links and all(found == wanted[kind] for kind, found in links), "the frontend offers what is missing"
    assert comfy.fetch(f"/api/workflow_templates/{PACK_DIR}/{name}.jpg")[:2] == b"\xff\xd8"


def test_import_is_quick(comfy):
    """The host's own measurement, in its log; on an idle machine it is below 0.05."""
    seconds = re.search(rf"([\d.]+) seconds: \S*{PACK_DIR}", comfy.log_text())
    assert float(seconds[1]) < 0.3


def test_import_brings_nothing_along(comfy, comfyui, tmp_path):
    pack = comfy.base / "custom_nodes" / PACK_DIR
    shutil.copy(pack / "pyproject.toml", tmp_path)
    (tmp_path / "__init__.py").write_text("from comfy_api.latest import io\nNODE_CLASS_MAPPINGS = {}\n")
    code = f"EMPTY, PACK = {str(tmp_path)!r}, {str(pack)!r}\n{ADDED_BY_IMPORT}"
    done = subprocess.run([sys.executable, "-c", code, "--cpu"], cwd=comfyui, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
