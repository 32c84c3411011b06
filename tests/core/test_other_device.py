"""On a device of its own nothing mixes with the CPU's tensors, and the recorded numbers come out (see `pretended`)."""

from pathlib import Path

import pytest
import torch
from pretended import DEVICE, pretended

from jodi_core import conformance
from jodi_core.conformance_cases import Recording

GOLDEN = Path(__file__).parents[1] / "golden"


# Of JointNet's cases one of each kind: every operation goes through Python here.
SHORT = {"forward_base", "joint_generation", "inpaint_custom_masks", "pano_plain_multidiffusion", "upsample_image",
         "mesh_default"}


@pytest.fixture
def few_cases(monkeypatch):
    read = Recording.values

    def values(recording):
        found = read(recording)
        if "unet_config" in found:
            found["cases"] = {name: about for name, about in found["cases"].items() if name in SHORT}
        return found

    monkeypatch.setattr(Recording, "values", values)


@pytest.mark.parametrize("family", ["jodi", "jointnet", "dual_diffusion"])
def test_recordings_agree_there(few_cases, family):
    with pretended():
        assert conformance.check(GOLDEN / family, str(DEVICE))


def test_the_device_refuses_what_a_gpu_refuses():
    with pretended():
        there = torch.ones(2, device=DEVICE)
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(2)
        with pytest.raises(RuntimeError, match="a generator of cpu"):
            torch.randn(2, device=DEVICE, generator=torch.Generator())
        assert (there + torch.tensor(1.0)).cpu().tolist() == [2, 2]
