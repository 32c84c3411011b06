"""The recorded numbers of JointNet's original pass, and changed ones are noticed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jodi_core.conformance import main
from jodi_core.conformance_cases import Recording
from jodi_core.conformance_jointnet import MODALITIES, Case, split
from jodi_core.domains import JointRoles
from jodi_core.jointnet.config import JointNetConfig
from jodi_core.jointnet.network import JointNet
from jodi_core.jointnet.sampling import Sampling
from jodi_core.jointnet.schedule import noise_levels

pytest.importorskip("diffusers")
from jodi_core.jointnet.unet import DiffusersBranch  # noqa: E402

GOLDEN = Path(__file__).parent.parent / "golden" / "jointnet"


@pytest.fixture(scope="module")
def recording():
    return json.loads((GOLDEN / "jointnet_tiny.json").read_text()), load_file(GOLDEN / "jointnet_tiny.safetensors")


def part(folder: Path, recording, cases: list[str], change=lambda values, tensors: None) -> Path:
    """A folder with some of the cases, under another name."""
    values, tensors = recording
    values = values | {"cases": {name: values["cases"][name] for name in cases}, "tile_grids": values["tile_grids"][:2]}
    values = json.loads(json.dumps(values))
    tensors = {name: tensor for name, tensor in tensors.items()
               if not name.startswith("case/") or name.split("/")[1] in cases}
    change(values, tensors)
    save_file(tensors, folder / "jointnet_other.safetensors")
    (folder / "jointnet_other.json").write_text(json.dumps(values))
    return folder


def test_golden_data_passes(capsys):
    assert main([str(GOLDEN)]) == 0
    shown = capsys.readouterr().out
    assert "FAILED" not in shown and "180 of 180 agree" in shown


@pytest.mark.parametrize("case, name", [
    ("forward_inpaint", "rgb/eps"), ("forward_inpaint", "joint/temb"), ("forward_base", "rgb/outgoing_residual_mid"),
    ("rgb2j", "latents_after_step"), ("rgb2j", "image"), ("rgb2j", "initial_latents"), ("mesh_scaled", "vertices"),
])
def test_a_changed_number_is_noticed(tmp_path, capsys, recording, case, name):
    def change(values, tensors):
        changed = tensors[f"case/{case}/{name}"].clone()
        changed.view(-1)[1] += 1e-3 * changed.abs().max()
        tensors[f"case/{case}/{name}"] = changed

    assert main([str(part(tmp_path, recording, [case], change))]) == 1
    rows = [row for row in capsys.readouterr().out.splitlines() if "FAILED" in row]
    assert len(rows) == 1


@pytest.mark.parametrize("change", [
    lambda values, tensors: values["cases"]["rgb2j"]["args"].update(guidance_scale=7.4),
    lambda values, tensors: values["cases"]["rgb2j"].update(variant="base"),
    lambda values, tensors: values["unet_config"].update(norm_eps=1e-6),
    lambda values, tensors: values["strength_to_timesteps"][3].update(evaluations=28),
    lambda values, tensors: values["tile_grids"][0]["views"][3].reverse(),
    lambda values, tensors: values["scheduler"]["alphas_cumprod"].update({"481": 0.31}),
    lambda values, tensors: values["cases"].update(unheard_of=values["cases"].pop("rgb2j")),
])
def test_a_changed_description_is_noticed(tmp_path, recording, change):
    assert main([str(part(tmp_path, recording, ["rgb2j"], change))]) == 1


@pytest.fixture
def other_model(tmp_path) -> Path:
    """A recording of our own network, unlike the golden one in every size: what the runner has to take."""
    settings = {"sample_size": 6, "block_out_channels": [32, 64], "layers_per_block": 1, "cross_attention_dim": 24,
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": [1, 4],
                "norm_num_groups": 16, "use_linear_projection": False}
    values = {"unet_config": settings, "scheduler": {"alphas_cumprod": {"999": 0.00466009508818388}}, "cases": {
        "call": {"kind": "single network evaluation", "variant": "inpaint"},
        "run": {"kind": "inpaint", "variant": "base", "seed": 5, "offsets": [],
                "args": {"height": 24, "width": 36, "num_inference_steps": 2, "guidance_scale": 3.0}}},
        "vae_stand_in": {"spatial_factor": 4, "scaling_factor": 0.5, "posterior_std": 0.2}}
    config = JointNetConfig.from_published(settings, True, latent_factor=4, latent_scale=0.5)
    torch.manual_seed(3)
    network = JointNet(config, lambda: DiffusersBranch(config))
    tensors = {name.replace(".", "/", 1): torch.randn_like(value) * 0.1 for name, value in network.state_dict().items()}
    tensors |= {"vae/encode_weight": torch.randn(4, 3, 1, 1), "vae/encode_bias": torch.randn(4),
                "vae/decode_weight": torch.randn(3, 4, 3, 3), "vae/decode_bias": torch.randn(3),
                "prompt_embeds": torch.randn(1, 7, 24), "negative_prompt_embeds": torch.randn(1, 7, 24)}
    recording = Recording(tmp_path, "jointnet_wide")
    (tmp_path / "jointnet_wide.json").write_text(json.dumps(values))
    save_file(tensors, tmp_path / "jointnet_wide.safetensors")
    case = Case(recording)
    call = {"latents": torch.randn(1, 8, 5, 7), "timestep": torch.tensor([333]),
            "encoder_hidden_states": torch.randn(1, 7, 24)}
    call |= {f"mask_{part}": torch.ones(1, 1, 5, 7) for part in MODALITIES}
    call |= {f"masked_{part}_latents": torch.zeros(1, 4, 5, 7) for part in MODALITIES}
    with torch.no_grad():
        model = case.network("inpaint")
        noise = model(split(call["latents"]), call["timestep"], model.read_text(call["encoder_hidden_states"]),
                      JointRoles.of(config.domains, generate=config.domains))
        pipe, states = case.pipeline("base"), []
        result = pipe("x", height=24, width=36, seed=5, how=Sampling(2, guidance=3.0, clean_end=False),
                      callback=lambda step, steps, x, x0: states.append(x))
        pictures = pipe.decode(result.latent_BCDHW, result.roles)
    start, middle = (x / (1 + sigma ** 2) ** 0.5 for x, sigma in zip(states, noise_levels()[[501, 1]].tolist()))
    call |= {"rgb/eps": noise[:, :, 0], "joint/eps": noise[:, :, 1]}
    run = {"timesteps": torch.tensor([501, 1]), "initial_latents": flat(start),
           "latents_after_step": flat(torch.stack([middle, result.latent_BCDHW]))}
    run |= {part: (pictures[name] / 2 + 0.5).clamp(0, 1)[..., ::4, ::4].movedim(1, -1)
            for name, part in zip(config.domains, MODALITIES)}
    tensors |= {f"case/{name}/{key}": value.contiguous() for name, part in (("call", call), ("run", run))
                for key, value in part.items()}
    save_file(tensors, tmp_path / "jointnet_wide.safetensors")
    return tmp_path


def flat(x: torch.Tensor) -> torch.Tensor:
    """(..., 4, 2, h, w) -> (..., 8, h, w), the picture's channels first."""
    return x.transpose(-4, -3).flatten(-4, -3)


def test_other_names_sizes_and_autoencoders(other_model, capsys):
    assert main([str(other_model)]) == 0
    shown = capsys.readouterr().out
    assert "jointnet_wide call rgb/eps" in shown and "jointnet_wide run states" in shown
