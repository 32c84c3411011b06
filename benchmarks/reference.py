"""The original as a contender, run unchanged from a checkout of its public repository (docs/performance.md).

Its inference imports training and download code, so packages that are not installed, and diffusers in any case, are
stood in for while it is imported; the two small layers that it takes from one of them (timm) are written here. Letters
as in `cases`.
"""

import importlib.metadata
import os
import sys
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import torch
import torchvision.transforms  # noqa: F401  (before the stand-ins come and go)
import transformers.models.auto  # noqa: F401
from torch import Tensor, nn

from benchmarks.cases import Inputs, Job, Setting, fill
from jodi_core.models.dcae_config import ATTENTION, RESIDUAL

os.environ.setdefault("DPM_TQDM", "True")    # its sampler draws no progress bar then
KINDS = {RESIDUAL: "ResBlock", ATTENTION: "EViTS5_GLU"}


class Attention(nn.Module):
    """The parameters that the original's linear attention inherits; it has its own forward."""

    def __init__(self, dim, num_heads, qkv_bias=False, **options):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)


class Mlp(nn.Module):
    def __init__(self, in_features, hidden_features, out_features, act_layer, drop=0.0):
        super().__init__()
        self.fc1, self.act = nn.Linear(in_features, hidden_features), act_layer()
        self.fc2 = nn.Linear(hidden_features, out_features)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Registry:
    """Leaves what it decorates as it is."""

    def __init__(self, name):
        pass

    def register_module(self):
        return lambda function: function


def module(name: str, **contents) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(contents)
    return made


def stand_ins() -> dict[str, ModuleType | MagicMock]:
    """Module name -> what is imported in its place: of packages that are not there, and of one that is not used."""
    empty = ("timm", "timm.models", "mmcv.runner", "mmcv.utils", "mmcv.utils.logging", "diffusers", "diffusers.models",
             "termcolor", "omegaconf", "triton", "triton.language", "pyrallis", "pytz", "yaml")
    modules = {name: MagicMock() for name in empty} | {
        "timm.models.layers": module("layers", DropPath=nn.Identity),
        "timm.models.vision_transformer": module("vision_transformer", Attention=Attention, Mlp=Mlp),
        "mmcv": module("mmcv", Registry=Registry), "importlib_metadata": importlib.metadata}
    # diffusers, where it is installed, would look for packages and find what stands in for them.
    return {name: made for name, made in modules.items()
            if (package := name.partition(".")[0]) == "diffusers" or find_spec(package) is None}


@contextmanager
def importable(folder: Path):
    """The checkout on the path and the stand-ins in place."""
    # The original asks whether triton is there before anything of it is imported: the answer must be the true one.
    absent = stand_ins()
    sys.path.insert(0, str(folder))
    try:
        if "importlib_metadata" in absent:
            sys.modules["importlib_metadata"] = absent["importlib_metadata"]
        import_module("utils.import_utils")
        sys.modules.update(absent)
        yield
    finally:
        sys.path.remove(str(folder))
        for name in absent:
            sys.modules.pop(name, None)


class Reference:
    """The original's network, sampler, autoencoder and pipeline on the weights of a job."""

    def __init__(self, setting: Setting, folder: Path, *, with_autoencoder: bool):
        if not (folder / "model" / "nets" / "jodi.py").is_file():
            raise SystemExit(f"{folder} is not a checkout of the original: it has no model/nets/jodi.py")
        self.setting = setting
        with importable(folder):
            self.code = SimpleNamespace(
                jodi=import_module("model.nets.jodi"), dpms=import_module("diffusion").DPMS,
                dcae=import_module("model.dc_ae.efficientvit.models.efficientvit.dc_ae"),
                pipeline=import_module("app.jodi_pipeline"))
        self.network = self._ready(self._network)
        self.autoencoder = self._ready(self._autoencoder) if with_autoencoder else None

    def _ready(self, make) -> nn.Module:
        """Made in its number type where it will run: peak memory shall be that of running, not of making."""
        setting, usual = self.setting, torch.get_default_dtype()
        torch.set_default_dtype(setting.dtype)
        try:
            with setting.device:
                made = make()
        finally:
            torch.set_default_dtype(usual)
        return fill(made.eval().requires_grad_(False), setting.seed)

    def _network(self) -> nn.Module:
        config = self.setting.size.config
        return self.code.jodi.Jodi(
            input_size=config.input_size, patch_size=config.patch_size, in_channels=config.in_channels,
            hidden_size=config.hidden_size, depth=config.depth, num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio, caption_channels=config.caption_channels,
            model_max_length=config.model_max_length, y_norm=config.y_norm, norm_eps=config.norm_eps,
            use_pe=config.use_pe, y_norm_scale_factor=config.y_norm_scale_factor,
            linear_head_dim=config.linear_head_dim, num_conditions=config.num_domains - 1)

    def _autoencoder(self) -> nn.Module:
        config, code = self.setting.size.autoencoder, self.code.dcae
        common = {"in_channels": config.in_channels, "latent_channels": config.latent_channels,
                  "width_list": list(config.widths), "block_type": [KINDS[kind] for kind in config.kinds]}
        encoder = code.EncoderConfig(depth_list=list(config.encoder_depths), downsample_block_type="Conv", **common)
        decoder = code.DecoderConfig(depth_list=list(config.decoder_depths), upsample_block_type="InterpolateConv",
                                     **common)
        return code.DCAE(code.DCAEConfig(in_channels=config.in_channels, latent_channels=config.latent_channels,
                                         encoder=encoder, decoder=decoder, scaling_factor=config.scaling_factor))

    @torch.inference_mode()
    def forward(self, job: Job, inputs: Inputs) -> Tensor:
        return self.network(inputs.noise_BLChw, inputs.time_B, inputs.text_BMW[:, None], inputs.role_BL,
                            inputs.mask_BM, inputs.clean_BLChw)[:, job.generated]

    @torch.inference_mode()
    def sample(self, job: Job, inputs: Inputs) -> Tensor:
        """As its pipeline does it."""
        solver = self.code.dpms(
            self.network, condition=inputs.text_BMW[:, None], uncondition=inputs.null_BMW[:, None],
            cfg_scale=job.guidance, model_type="flow", schedule="FLOW",
            model_kwargs={"mask": inputs.mask_BM, "role": inputs.role_BL, "clean_x": inputs.clean_BLChw})
        return solver.sample(inputs.noise_BLChw, steps=job.steps, order=2, skip_type="time_uniform_flow",
                             method="multistep", flow_shift=self.setting.size.config.flow_shift)[:, job.generated]

    def whole(self, job: Job, inputs: Inputs) -> Tensor:
        """Its pipeline takes one request at a time."""
        pipeline = self._pipeline(job)
        return torch.stack([self._request(pipeline, job, inputs, row) for row in range(job.batch)])

    def _pipeline(self, job: Job):
        """The original's, around the networks that are here already and for one size of pictures."""
        config, side = self.setting.size.config, float(job.pixels)
        pipeline = object.__new__(type("OneSize", (self.code.pipeline.JodiPipeline,),
                                       {"base_ratios": {"1.0": [side, side]}}))
        pipeline.config = SimpleNamespace(
            vae=SimpleNamespace(vae_type="dc-ae", vae_downsample_rate=self.setting.size.autoencoder.factor,
                                vae_latent_dim=config.in_channels, sample_posterior=True),
            text_encoder=SimpleNamespace(chi_prompt=None, model_max_length=config.model_max_length))
        pipeline.device, pipeline.weight_dtype, pipeline.vae_dtype = self.setting.device, *(2 * [self.setting.dtype])
        pipeline.vae, pipeline.model, pipeline.num_conditions = self.autoencoder, self.network, config.num_domains - 1
        pipeline.flow_shift, pipeline.progress_fn = config.flow_shift, lambda progress, desc: None
        return pipeline

    def _request(self, pipeline, job: Job, inputs: Inputs, row: int) -> Tensor:
        # Captions are encoded before the clock starts, for all contenders alike.
        token = SimpleNamespace(input_ids=None, attention_mask=inputs.mask_BM[row:row + 1])
        token.to = lambda *place, **named: token
        pipeline.tokenizer = lambda *prompt, **options: token
        pipeline.text_encoder = lambda ids, mask: [inputs.text_BMW[row:row + 1]]
        pipeline.null_caption_embs = inputs.null_BMW[row:row + 1]
        given = {name: picture_BCHW[row] * 2 - 1 for name, picture_BCHW in inputs.pictures.items()}
        pictures = pipeline([given.get(name) for name in self.setting.size.config.domains],
                            inputs.role_BL[row].tolist(), height=job.pixels, width=job.pixels,
                            num_inference_steps=job.steps, guidance_scale=job.guidance,
                            latents=inputs.noise_BLChw[row:row + 1])
        return torch.cat([pictures[i] for i in job.generated])
