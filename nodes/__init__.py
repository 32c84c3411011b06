"""ComfyUI nodes of the joint model. Imported by the host's entry point only."""

from comfy_api.latest import ComfyExtension, io

from .decode import JodiLabelDecode
from .loader import JodiLoader
from .roles import JodiRoleSwitch
from .sampling import JodiJointSampler


class JodiExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [JodiLoader, JodiRoleSwitch, JodiJointSampler, JodiLabelDecode]
