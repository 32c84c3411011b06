"""The bundled tiny model does what the README shows."""

import pytest
import torch

from jodi_core import JodiPipeline
from jodi_core.segmentation import SEGMENTATION_NAMES, nearest_class
from training.world import colour_word, render, sample_scene

HELD_OUT = 20_000_000


@pytest.fixture(scope="module")
def pipe():
    return JodiPipeline.from_pretrained("tiny", device="cpu")


def class_mask(segmentation_3HW, name):
    return nearest_class(segmentation_3HW[None] * 2 - 1)[0] == SEGMENTATION_NAMES.index(name)


@pytest.mark.parametrize("prompt, kind, colour", [
    ("a red house beside a lake", "building", "red"),
    ("a blue car on the right, on white snow, under a clear blue sky", "vehicle", "blue"),
    ("a yellow house on the left, a pine tree on the right, green grass", "building", "yellow"),
])
def test_prompts_are_obeyed(pipe, prompt, kind, colour):
    pictures = pipe([prompt] * 4, seed=7).pictures
    found = [colour_word(albedo * 255, class_mask(segmentation, kind))
             for albedo, segmentation in zip(pictures["albedo"], pictures["segmentation"])]
    assert found.count(colour) >= 3, found


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (160, 96)])
def test_labels_of_a_picture_are_near_the_truth(pipe, size):
    truth = {name: picture.float() / 255
             for name, picture in render([sample_scene(HELD_OUT + i) for i in range(4)], *size).items()}
    read = pipe(conditions={"image": truth["image"]}, seed=1).pictures
    assert read["depth"].shape[-2:] == size
    right = torch.stack([(one - other).abs().amax(0) < 0.02
                         for one, other in zip(read["segmentation"], truth["segmentation"])])
    assert right.float().mean() > 0.85
    assert (read["albedo"] - truth["albedo"]).square().mean() < 0.01    # 20 dB
