"""The parts of one evaluation: they are all of it, and the other way to convolve is the same."""

import torch

from benchmarks import parts, timing
from benchmarks.cases import SIZES, Inputs, Setting, jobs
from benchmarks.contenders import Ours


def test_parts_make_up_an_evaluation():
    """By their operations, at the published size, on tensors without data."""
    setting = Setting(SIZES["1600M"], torch.device("meta"), torch.bfloat16)
    job, = jobs(setting, ["forward"], ["joint"], [1], [1024], text_tokens=60, steps=None)
    ours = Ours(setting, with_autoencoder=False)
    found = parts.parts(ours, job, Inputs.of(job, ours.network.y_embedder.y_embedding))
    counted = sum(timing.operations(lambda: part.run(*part.given))[1] * part.times for part in found)
    # The rest is the time, the text, and what happens once in the first and the last layer.
    assert 0.98 < counted * setting.size.config.depth / timing.operations_of_ours(job) <= 1


def test_the_table_has_all_parts(tmp_path):
    target = tmp_path / "parts.md"
    parts.main(["--size", "tiny", "--rounds", "1", "--threads", "1", "--output", str(target)])
    text = target.read_text()
    assert all(f"| {name} |" in text for name in ("qkv", "depth-wise 3x3", "text attention", "one evaluation"))


def test_nine_products_are_the_convolution():
    conv = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6)
    x_BHWC = torch.randn(2, 5, 4, 6)
    with torch.no_grad():
        expected = conv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        assert torch.allclose(parts.nine_products(conv, x_BHWC), expected, atol=1e-6)
