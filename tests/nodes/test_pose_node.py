"""What the label nodes hand over, read by the host's own code."""

import math

import pytest
import torch

from jodi_pack.nodes.pose import JodiPoseKeypoints
from training.world import render, sample_scene

pytest.importorskip("comfy_extras.nodes_sdpose")


@pytest.fixture(scope="module")
def scenes():
    """Four scenes, the last of them without a person."""
    found = [scene for scene in map(sample_scene, range(99)) if scene.thing("person")][:3]
    return [*found, next(scene for scene in map(sample_scene, range(99)) if not scene.thing("person"))]


def test_host_redraws_the_people(scenes):
    from comfy_extras.nodes_sdpose import SDPoseDrawKeypoints
    drawings_BHW3 = render(scenes, 512, 512)["openpose"].movedim(1, -1).float() / 255
    (frames,) = JodiPoseKeypoints.execute(drawings_BHW3).result
    assert [len(frame["people"]) for frame in frames] == [1, 1, 1, 0]
    (redrawn_BHW3,) = SDPoseDrawKeypoints.execute(
        frames, draw_body=True, draw_hands=True, draw_face=True, draw_feet=True, stick_width=4, face_point_size=3,
        score_threshold=0.3, draw_head=True).result
    assert redrawn_BHW3.shape == drawings_BHW3.shape and not redrawn_BHW3[3].any()
    (again,) = JodiPoseKeypoints.execute(torch.as_tensor(redrawn_BHW3)).result
    for frame, second in zip(frames[:3], again):
        one, other = (part["people"][0]["pose_keypoints_2d"] for part in (frame, second))
        for at in range(0, 54, 3):
            assert bool(one[at + 2]) == bool(other[at + 2]) and math.dist(one[at:at + 2], other[at:at + 2]) < 2
