"""Labels read from pictures of the toy world by the tiny model, in the host, against the best constant guess."""

import numpy as np
import pytest
from jodi_prompts import add_picture, joint_prompt, node, run
from PIL import Image

from jodi_core.domains import JODI_DOMAINS
from jodi_core.pictures import postprocess
from training.world import render, sample_scene

HELD_OUT = range(10_000_000, 10_000_004)  # far from the training seeds
READ = ("depth", "normal", "albedo", "segmentation")


def truths(seeds) -> dict[str, np.ndarray]:
    """Domain -> (B, H, W, 3) in [0, 1], post-processed as the decoder's output is."""
    rendered = render([sample_scene(seed) for seed in seeds], 128, 128)
    return {name: postprocess(name, rendered[name].float() / 127.5 - 1).movedim(1, -1).numpy()
            for name in JODI_DOMAINS}


@pytest.fixture(scope="module")
def results(server):
    """(read from pictures, their truth, truth of other scenes), each domain -> (B, H, W, 3)."""
    truth, others = truths(HELD_OUT), truths(range(64))
    prompt = joint_prompt({"image": "batch3"} | dict.fromkeys(READ, "generate"), steps=10, cfg=1.0)
    previous = None
    for row, picture_HW3 in enumerate(truth["image"]):
        add_picture(server, prompt, f"picture{row}", Image.fromarray((picture_HW3 * 255).round().astype(np.uint8)))
        if previous:
            prompt[f"batch{row}"] = node("ImageBatch", image1=[previous, 0], image2=[f"picture{row}", 0])
        previous = f"batch{row}" if previous else f"picture{row}"
    return run(server, prompt), truth, others


@pytest.mark.parametrize("name", ["depth", "normal", "albedo"])
def test_perception_beats_the_mean_map(results, name):
    read, truth, others = (result[name] for result in results)
    error, baseline = (float(np.abs(maps - truth).mean()) for maps in (read, others.mean(0)))
    assert error < 0.9 * baseline


def test_segmentation_beats_the_most_frequent_classes(results):
    read, truth, others = (class_codes(result["segmentation"]) for result in results)
    most_frequent = np.apply_along_axis(lambda codes: np.bincount(codes).argmax(), 0, others)
    correct, baseline = (float((codes == truth).mean()) for codes in (read, most_frequent))
    assert correct > baseline + 0.05


def class_codes(colours_BHW3: np.ndarray) -> np.ndarray:
    """A small number per colour (each channel of the palette in quarters of the range), (B, H, W)."""
    return (colours_BHW3 * 4).round().astype(np.int64) @ np.array([25, 5, 1])
