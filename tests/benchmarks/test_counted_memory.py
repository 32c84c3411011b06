"""Memory that is counted without a device."""

import re

import torch

from benchmarks import counted_memory


def test_what_is_alive_at_once():
    given = torch.empty(1000, device="meta")

    def run():
        first = given + 1
        second = first[:10] + 1    # a view takes nothing
        del first
        return given + second.sum()

    # first with second; then, after first is gone, the result with second and its sum
    assert counted_memory.counted(run, there=[given]) == 4 * (1000 + 10 + 1)


def test_the_table(tmp_path):
    """Less than what ComfyUI is told; memory grows with pixels."""
    target = tmp_path / "memory.md"
    counted_memory.main(["--pixels", "1024", "2048", "--output", str(target)])
    rows = {name: (float(size), int(share)) for name, size, share in
            re.findall(r"^\| (\w+, \d+ px) \| \d \| (\S+) \| (\d+) \|$", target.read_text(), re.M)}
    assert len(rows) == 12
    for name, (size, share) in rows.items():
        assert share < (1000 if "code" in name else 0.01 * 4.5 * 2 ** 20)
        if "1024" in name:
            assert size < rows[name.replace("1024", "2048")][0]
