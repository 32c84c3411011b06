"""The lines of cost: their arithmetic, and that what is counted lies on them."""

import re

import pytest
import torch

from benchmarks import linear_cost


def test_the_line_of_least_squares():
    x_P = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert linear_cost.line(x_P, 2 * x_P + 1) == pytest.approx((2, 1, 1, 0))
    y_P = torch.tensor([1.0, 4.0, 4.0], dtype=torch.float64)
    assert linear_cost.line(x_P, y_P) == pytest.approx((1.5, 0, 0.75, 0.5))


def test_operations_are_linear_in_pixels_and_in_domains(tmp_path):
    target = tmp_path / "lines.md"
    linear_cost.main(["--size", "tiny", "--pixels", "32", "64", "96", "128", "--domains-pixels", "64", "--rounds", "1",
                      "--threads", "1", "--output", str(target)])
    lines = re.findall(r"^\| GFLOP \| (\S+) \| (\S+) \| 1.00000 \| 0.0% \|$", target.read_text(), re.M)
    assert len(lines) == 2 and all(float(slope) > 0 for slope, _ in lines)
