"""The benchmark of the node graph on a real ComfyUI, cut down. Nothing here asserts how fast or how large."""

import re

import pytest

from benchmarks import node_graph


def test_every_case_gets_its_row(comfyui, tmp_path):
    node_graph.main(["--comfyui", str(comfyui), "--size", "tiny", "--pixels", "64", "--steps", "2", "--rounds", "1",
                     "--tasks", "control", "perceive7", "--output", str(tmp_path / "table.md")])
    rows = [re.split(r" *\| *", line)[1:-1] for line in (tmp_path / "table.md").read_text().splitlines()
            if line.startswith("|")][2:]
    assert [row[1] for row in rows] == ["control", "perceive7"] and all(float(row[-1]) > 0.1 for row in rows)


def test_memory_of_a_gpu_cannot_be_limited_on_a_cpu():
    with pytest.raises(SystemExit):
        node_graph.parse(["--vram", "8"])
