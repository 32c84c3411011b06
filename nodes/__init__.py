"""ComfyUI nodes of the joint model. Imported by the host's entry point only."""

from comfy_api.latest import ComfyExtension, io

from .captions import JodiAskImage, JodiCaptionImage
from .custom_sampling import JodiNoise, JodiSampler, JodiSigmas
from .decode import JodiDomainDecode, JodiLabelDecode
from .dual_diffusion_loader import JodiDualDiffusionLoader
from .dual_diffusion_text import JodiDualDiffusionTextEncode
from .fill_text import JodiFillText, JodiScoreText
from .jointnet_loader import JodiJointNetLoader
from .jointnet_lora import JodiJointNetLoraOnDepth
from .labels import JodiLabelConvert
from .loader import JodiLoader
from .mesh import JodiDepthMesh
from .panorama import JodiPanoramaCanvas
from .pose import JodiPoseKeypoints
from .resampling import JodiResampling
from .roles import JodiDomain, JodiRoleSwitch
from .sampling import JodiJointSampler
from .text import JodiTextEncode
from .text_options import JodiTextOptions
from .tiles import JodiTiles
from .upsample import JodiUpsample

NODES = [
    JodiLoader,
    JodiJointNetLoader,
    JodiJointNetLoraOnDepth,
    JodiDualDiffusionLoader,
    JodiTiles,
    JodiPanoramaCanvas,
    JodiUpsample,
    JodiTextEncode,
    JodiRoleSwitch,
    JodiDomain,
    JodiJointSampler,
    JodiSampler,
    JodiResampling,
    JodiSigmas,
    JodiNoise,
    JodiLabelDecode,
    JodiDomainDecode,
    JodiLabelConvert,
    JodiPoseKeypoints,
    JodiDepthMesh,
    JodiDualDiffusionTextEncode,
    JodiCaptionImage,
    JodiAskImage,
    JodiFillText,
    JodiScoreText,
    JodiTextOptions,
]


class JodiExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
