"""Labels in the forms of other tools, on labels of the toy world and on made-up ones."""

import pytest
import torch

from jodi_core.labels import (DIRECTX, OPENGL, PUBLISHED, class_mask, class_numbers, depth_values, line_values,
                              paint_normals, unit_normals)
from jodi_core.segmentation import PALETTE_12, SEGMENTATION_NAMES, paint_classes
from training.world import render, sample_scene


@pytest.fixture(scope="module")
def world():
    labels = render([sample_scene(seed) for seed in range(4)], 64, 96)
    return {name: picture.float() / 255 for name, picture in labels.items()}


def test_depth_turns_round(world):
    near_BHW, far_BHW = depth_values(world["depth"]), depth_values(world["depth"], near_white=False)
    assert (near_BHW[:, -1] > 0.9).all() and (near_BHW[:, 0] < 0.1).all()    # the ground before us, the sky
    torch.testing.assert_close(near_BHW + far_BHW, torch.ones(4, 64, 96))


def test_lines_are_found_on_either_ground(world):
    on_black = world["edge"]
    on_both = torch.cat([on_black, 1 - world["lineart"]])
    truth = torch.cat([on_black, world["lineart"]]).mean(1)
    assert 0 < truth.mean() < 0.5
    torch.testing.assert_close(line_values(on_both), truth)
    torch.testing.assert_close(line_values(on_both, inverted=True), 1 - truth)


def test_normals_change_convention():
    right, up = torch.tensor([0.6, 0.0, 0.8]), torch.tensor([0.0, 0.6, 0.8])
    normals_B3HW = torch.stack([right, up])[:, :, None, None]
    published = paint_normals(normals_B3HW, PUBLISHED)
    assert published[0, 0] < 0.5 and published[1, 1] > 0.5    # facing right is not red, facing up is green
    assert paint_normals(normals_B3HW, OPENGL)[0, 0] > 0.5
    assert paint_normals(normals_B3HW, DIRECTX)[1, 1] < 0.5
    for convention in (PUBLISHED, OPENGL, DIRECTX):
        file = (paint_normals(normals_B3HW, convention) * 255).round() / 255
        torch.testing.assert_close(unit_normals(file, convention), normals_B3HW, atol=0.01, rtol=0)


def test_blended_normals_become_unit_vectors():
    normals_B3HW = unit_normals(torch.full((1, 3, 2, 2), 0.6))
    torch.testing.assert_close(normals_B3HW.norm(dim=1), torch.ones(1, 2, 2))


def test_classes_survive_a_file_and_noise():
    classes_BHW = torch.arange(12).view(1, 3, 4)
    noisy = paint_classes(classes_BHW) + 0.15 * (torch.rand(1, 3, 3, 4, generator=torch.manual_seed(0)) - 0.5)
    assert torch.equal(class_numbers(noisy), classes_BHW)
    assert class_numbers(torch.tensor(PALETTE_12[11].tolist()).view(1, 3, 1, 1) / 255).item() == 11


def test_class_masks_divide_the_picture(world):
    classes_BHW = class_numbers(world["segmentation"])
    masks = torch.stack([class_mask(classes_BHW, name) for name in SEGMENTATION_NAMES])
    assert torch.equal(masks.sum(0), torch.ones(4, 64, 96))
    assert class_mask(classes_BHW, "sky")[:, 0].all()


@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_with_other_channels(channels):
    assert depth_values(torch.rand(2, channels, 4, 5)).shape == (2, 4, 5)
