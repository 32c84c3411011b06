"""Nothing inside the loop of steps makes the host wait for the device."""

import pytest
from nodes_fixtures import switch, text
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "unique")    # what brings numbers back to Python


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in WAITING:
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("generate, condition", [(("image", "depth"), ()), (("depth", "normal"), ("image",)),
                                                 (("image",), ("depth", "albedo"))])
def test_more_steps_do_not_wait_more_often(loaded, generate, condition):
    from jodi_pack.nodes.sampling import JodiJointSampler
    model, clip, vae = loaded
    positive, negative, latent = switch(vae, text(clip, "a house"), text(clip, ""), generate=generate,
                                        condition=condition)

    def waits(steps):
        with Waits() as found:
            JodiJointSampler.execute(model, positive, negative, latent, 1, steps, 3.0)
        return found.seen

    assert waits(2) == waits(5)
