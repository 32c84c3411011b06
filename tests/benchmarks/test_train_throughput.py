"""The comparison of ways to train runs, and its ways read the same samples."""

import re

from benchmarks import train_throughput


def test_a_table_of_all_ways(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_throughput, "memory_of", lambda name, folder: "1")
    train_throughput.main(["--rounds", "1", "--steps", "1", "--batch", "2", "--micro-batch", "2", "--scenes", "3",
                           "--output", str(tmp_path / "table.md")])
    rows = re.findall(r"^\| ([a-z ,]+) \| ([\d.]+) \| ([\d.]+) \| 1 \|$", (tmp_path / "table.md").read_text(), re.M)
    assert [row[0] for row in rows] == list(train_throughput.WAYS) and rows[0][2] == "1.00"
    assert all(float(speed) > 0 for _, speed, _ in rows)
