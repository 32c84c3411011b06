import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jodi_core.models.dcae import DCAE, ChannelNorm, DCAEConfig, from_diffusers_keys
from jodi_core.models.tiling import run_tiled

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = DCAEConfig(widths=(4, 8, 16), encoder_depths=(0, 1, 0), decoder_depths=(1, 0, 1), kinds=("residual",) * 3,
                  latent_channels=8)


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture(scope="module")
def golden():
    weights = {key: value.float() for key, value in load_file(GOLDEN / "jodi/dcae.weights.safetensors").items()}
    config = DCAEConfig.from_reference(json.loads((GOLDEN / "jodi/dcae.json").read_text()))
    model = DCAE(config).eval().requires_grad_(False)
    model.load_state_dict(weights, strict=True)
    return model, weights, load_file(GOLDEN / "jodi/dcae.cases.safetensors")


@pytest.fixture(scope="module")
def published():
    """Original name, shape, diffusers name or the three names of q, k and v: all parameters of the real file."""
    return json.loads((GOLDEN / "dcae_published.json").read_text())


def tiny(seed=0, config=TINY):
    torch.manual_seed(seed)
    model = DCAE(config).eval().requires_grad_(False)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.2)
    return model


# 64x96 has 6 latent positions (quadratic attention), 192x192 has 36 (linear attention).
@pytest.mark.parametrize("case", ["img64x96", "img192x192"])
def test_agrees_with_the_recorded_reference(golden, case):
    model, _, cases = golden
    pictures = cases[f"{case}.u8"].float() / 127.5 - 1
    latents = model.encode(pictures)
    assert relative(latents, cases[f"{case}.latent"]) < 2e-6
    assert relative(latents * model.config.scaling_factor, cases[f"{case}.latent_scaled"]) < 2e-6
    decoded = model.decode(cases[f"{case}.latent_scaled"] / model.config.scaling_factor)
    assert relative(decoded, cases[f"{case}.decoded"]) < 2e-6


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_half_precision_stays_close(golden, dtype, bound):
    _, weights, cases = golden
    model = DCAE(golden[0].config, dtype=dtype)
    model.load_state_dict(weights)
    pictures = (cases["img64x96.u8"].float() / 127.5 - 1).to(dtype)
    with torch.no_grad():
        latents = model.encode(pictures)
        decoded = model.decode(latents)
    assert latents.dtype == decoded.dtype == dtype
    assert relative(latents.float(), cases["img64x96.latent"]) < bound
    assert relative(decoded.float(), cases["img64x96.decoded"]) < bound


def test_published_names_and_shapes(published):
    state = DCAE(DCAEConfig(), device="meta").state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == {key: shape for key, shape, _ in published}


def to_diffusers(state_dict, published):
    """Rename by the recorded names of the published file (block numbers differ between files, the rest does not)."""
    inner = {}
    for original, _, names in published:
        if ".op_list." in original and ".stages." in original:
            part, stage, rest = split(original)
            names = names if isinstance(names, list) else [names]
            inner[part, rest] = [name.split(".", 4)[4] for name in names]
    ends = {original: [name] for original, _, name in published if ".stages." not in original}
    renamed = {}
    for key, value in state_dict.items():
        if key in ends:
            names = ends[key]
        else:
            part, stage, rest = split(key)
            blocks = "down_blocks" if part == "encoder" else "up_blocks"
            names = [f"{part}.{blocks}.{stage}.{name}" for name in inner[part, rest]]
        if len(names) == 3 or names[0].endswith("to_out.weight"):
            value = value[:, :, 0, 0]
        renamed.update(zip(names, value.chunk(len(names))))
    return renamed


def split(key):
    part, _, stage, _, block, rest = key.split(".", 5)
    return part, f"{stage}.{block}", rest


def test_diffusers_file_loads_and_gives_the_same_model(golden, published):
    model, weights, _ = golden
    renamed = to_diffusers(weights, published)
    assert len(renamed) > len(weights) and not set(renamed) & set(weights)
    back = from_diffusers_keys(renamed)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    assert from_diffusers_keys(weights) is weights


def test_every_published_diffusers_name_is_known(published):
    state = {key: torch.empty(shape, device="meta") for key, shape, _ in published}
    renamed = to_diffusers(state, published)
    expected = {name for _, _, names in published for name in (names if isinstance(names, list) else [names])}
    assert renamed.keys() == expected
    back = from_diffusers_keys(renamed)
    assert {key: tuple(value.shape) for key, value in back.items()} == {key: tuple(s) for key, s, _ in published}
    assert DCAEConfig.from_state_dict({key: value.shape for key, value in renamed.items()}) == DCAEConfig()


def test_foreign_parameter_is_named():
    with pytest.raises(ValueError, match="encoder.mid_block.weight"):
        from_diffusers_keys({"encoder.mid_block.weight": torch.zeros(1)})


@pytest.mark.parametrize("config", [DCAEConfig(), TINY])
def test_config_from_shapes_and_json(config):
    shapes = {key: tuple(value.shape) for key, value in DCAE(config, device="meta").state_dict().items()}
    assert DCAEConfig.from_state_dict(shapes) == config
    assert DCAEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert DCAEConfig.from_state_dict(shapes, scaling_factor=0.5).scaling_factor == 0.5


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="not a DC-AE"):
        DCAEConfig.from_state_dict({"encoder.conv_in.weight": (128, 3, 3, 3)})


@pytest.mark.parametrize("change, message", [
    ({"widths": (4, 8, 12)}, "8 and 12"),
    ({"widths": (4, 8, 20, 40)}, "3 entries for 4 stages"),
    ({"latent_channels": 5}, "16 is not a multiple of the 5"),
    ({"kinds": ("residual", "residual", "attention")}, "width 16 .* head size 32"),
    ({"kinds": ("residual", "residual", "conv")}, "stage 2 .*'conv'"),
])
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DCAEConfig.from_dict(TINY.to_dict() | change)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="depth_list"):
        DCAEConfig.from_dict(TINY.to_dict() | {"depth_list": 1})
    reference = json.loads((GOLDEN / "jodi/dcae.json").read_text())
    with pytest.raises(ValueError, match="ConvPixelUnshuffle"):
        DCAEConfig.from_reference(reference | {"downsample": "ConvPixelUnshuffle"})


def test_wrong_pictures_and_latents_are_refused():
    model = tiny()
    with pytest.raises(ValueError, match="multiples of 4"):
        model.encode(torch.zeros(1, 3, 8, 10))
    with pytest.raises(ValueError, match=r"\(batch, 8, h, w\), not \(1, 4, 2, 2\)"):
        model.decode(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="multiples of 4"):
        model.decode_tiled(torch.zeros(1, 8, 16, 16), tile=18, overlap=4)
    with pytest.raises(ValueError, match="at most half"):
        model.decode_tiled(torch.zeros(1, 8, 16, 16), tile=16, overlap=12)


def test_tiles_without_attention_equal_the_whole():
    """A quarter of the overlap is surroundings only: exact where the convolutions do not reach further."""
    model = tiny()
    pictures = torch.rand(1, 3, 64, 240, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = model.encode(pictures)
    assert relative(model.encode_tiled(pictures, tile=160, overlap=80), whole) < 1e-5
    assert relative(model.encode_tiled(pictures, tile=32, overlap=16), whole) > 1e-5
    assert relative(model.decode_tiled(whole, tile=160, overlap=80), model.decode(whole)) < 1e-5


def test_tiles_with_attention_stay_close_to_the_whole(golden):
    """Attention sees its tile only. With random weights, a bad case: a third of the range."""
    model, _, cases = golden
    pictures = cases["img192x192.u8"].float() / 127.5 - 1
    latents, decoded = cases["img192x192.latent"], cases["img192x192.decoded"]
    for ours, whole in ((model.encode_tiled(pictures, tile=128, overlap=64), latents),
                        (model.decode_tiled(latents, tile=128, overlap=64), decoded)):
        assert relative(ours, whole) < 0.35
        assert (ours - whole).std() < 0.2 * whole.std()


def test_blending_is_exact_for_a_pointwise_function():
    x = torch.rand(2, 3, 37, 21, generator=torch.Generator().manual_seed(0))
    doubled = run_tiled(lambda part: torch.nn.functional.interpolate(part, scale_factor=2), x, 8, 3, 2)
    assert torch.allclose(doubled, torch.nn.functional.interpolate(x, scale_factor=2), atol=1e-6)


def test_layers_come_from_the_given_operations():
    class Operations:
        made = 0

        class Conv2d(torch.nn.Conv2d):
            def __init__(self, *args, **options):
                super().__init__(*args, **options)
                Operations.made += 1

    model = DCAE(TINY, operations=Operations, dtype=torch.bfloat16)
    assert Operations.made == sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


def test_norms_follow_the_input_type():
    """Host operations cast convolutions to the input's type; norm weights stay in storage type."""
    model = tiny()
    norm = model.decoder.project_out.op_list[0]
    x = torch.randn(1, 4, 3, 3, dtype=torch.bfloat16)
    assert norm(x).dtype == torch.bfloat16
    assert norm.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 0)])
def test_the_norm_that_saves_memory_is_the_one_with_a_gradient(dtype, tolerance):
    norm = ChannelNorm(6, 1e-5, dtype=dtype)
    x_BCHW = torch.randn(2, 6, 5, 4, dtype=dtype).to(memory_format=torch.channels_last)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(6))
        kept = x_BCHW.clone()
        found = norm(x_BCHW)
    expected = norm(x_BCHW)
    assert expected.requires_grad and torch.equal(x_BCHW, kept)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert found.is_contiguous(memory_format=torch.channels_last)
