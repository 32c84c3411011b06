"""The benchmark of the approximations on a real ComfyUI, cut down. Nothing here asserts how fast or how good."""

import re

from benchmarks import approximations
from benchmarks.approximations import Way


def test_every_way_gets_its_rows(comfy, monkeypatch, tmp_path):
    few = {name: Way(0.1, way.weights, way.patches, way.tasks) for name, way in approximations.WAYS.items()
           if name in ("as published", "LazyCache 0.2", "guidance from 0.2 to 0.7", "fp8_e5m2 weights")}
    monkeypatch.setattr(approximations, "WAYS", few)
    monkeypatch.setattr(approximations, "BASELINE_SEEDS", range(1_000_000, 1_000_016))
    approximations.main(["--server", comfy.url, "--scenes", "2", "--output", str(tmp_path / "table.md")])
    rows = [re.split(r" *\| *", line)[1:-1] for line in (tmp_path / "table.md").read_text().splitlines()
            if line.startswith("|")]
    timed = {row[0]: row[1:] for row in rows[2:2 + len(few)]}
    judged = dict(zip(rows[2 + len(few)][1:], zip(*(row[1:] for row in rows[4 + len(few):]))))
    assert list(timed) == list(judged) == list(few)
    assert timed["as published"][1::2] == ["1.00"] * 3 and all(map(float, timed["fp8_e5m2 weights"]))
    # Where the image is given guidance has no effect, so that there is nothing to measure.
    guided = judged["guidance from 0.2 to 0.7"]
    assert set(guided[:-5]) == {""} and all(guided[-5:]) and guided[-5:] != judged["as published"][-5:]
    assert judged["fp8_e5m2 weights"] != judged["as published"]
