"""ComfyUI nodes of the joint model. Imported by the host's entry point only."""

from comfy_api.latest import ComfyExtension, io

from .custom_sampling import JodiNoise, JodiSampler, JodiSigmas
from .decode import JodiLabelDecode
from .loader import JodiLoader
from .roles import JodiRoleSwitch
from .sampling import JodiJointSampler

NODES = [
    JodiLoader,
    JodiRoleSwitch,
    JodiJointSampler,
    JodiSampler,
    JodiSigmas,
    JodiNoise,
    JodiLabelDecode,
]


class JodiExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
