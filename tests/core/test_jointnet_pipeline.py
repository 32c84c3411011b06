"""JointNet from pictures to pictures, by the recorded tiny model and stand-ins for the parts of Stable Diffusion."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from jodi_core.cli import main
from jodi_core.conformance_cases import Recording
from jodi_core.files import WeightsError
from jodi_core.jointnet.pictures import stretched
from jodi_core.jointnet.sampling import Sampling, latent_mask
from jodi_core.jointnet.schedule import noise_levels, sigmas, timesteps
from jodi_core.tiles import Tiling

pytest.importorskip("diffusers")
from jodi_core.conformance_jointnet import Case  # noqa: E402
from jodi_core.jointnet.loading import refuse_velocity  # noqa: E402
from jodi_core.jointnet.pipeline import JointNetPipeline  # noqa: E402
from jodi_core.jointnet.programs import convert, expand, panorama, panorama_tiling, upsample  # noqa: E402
from jodi_core.jointnet.text import load_clip_text  # noqa: E402

CASE = Case(Recording(Path(__file__).parent.parent / "golden" / "jointnet", "jointnet_tiny"))
SHORT = Sampling(steps=3)


@pytest.fixture(params=["base", "inpaint"])
def any_pipe(request):
    return CASE.pipeline(request.param)


@pytest.fixture
def pipe():
    return CASE.pipeline("inpaint")


def picture(height=64, width=64, seed=0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def kept(pipe, result, domain, given) -> bool:
    """Whether a domain of the result is the encoded picture, up to the spread of a sample."""
    slot = pipe.domains.index(domain)
    mean = pipe.autoencoder.encode(given * 2 - 1, torch.zeros(1)) * pipe.config.latent_scale
    return (result.latent_BCDHW[:, :, slot] - mean).abs().max() < 5 * 0.1 * pipe.config.latent_scale


def test_joint_generation(any_pipe):
    """Both variants: the one with masks gets masks of ones by itself."""
    result = any_pipe("a", how=SHORT, seed=3)
    assert result.pictures.keys() == {"image", "depth"} and result.pictures["image"].shape == (1, 3, 64, 64)
    depth = result.pictures["depth"]
    assert torch.equal(depth[:, :1], depth[:, 2:]) and 0 <= depth.min() and depth.max() <= 1
    again = any_pipe("a", how=SHORT, seed=3)
    assert torch.equal(again.latent_BCDHW, result.latent_BCDHW)
    assert not torch.equal(any_pipe("a", how=SHORT, seed=4).latent_BCDHW, result.latent_BCDHW)


@pytest.mark.parametrize("source, target", [("image", "depth"), ("depth", "image")])
def test_conversions(any_pipe, source, target):
    given = picture()
    result = convert(any_pipe, given, target, "a", how=SHORT, seed=1)
    assert result.pictures.keys() == {target} and kept(any_pipe, result, source, given)
    other = convert(any_pipe, picture(seed=9), target, "a", how=SHORT, seed=1)
    assert not torch.allclose(other.pictures[target], result.pictures[target])
    with pytest.raises(ValueError, match="has none: use strength 1"):
        convert(any_pipe, given, target, "a", how=Sampling(steps=4, strength=0.5))


def test_masks_keep_what_they_do_not_cover(pipe):
    given, mask = {"image": picture(), "depth": picture(seed=1)}, torch.zeros(1, 1, 64, 64)
    mask[..., 16:, :] = 1
    result = pipe("a", pictures=given, masks={"image": mask}, how=SHORT, seed=2)
    assert result.pictures.keys() == {"image"} and kept(pipe, result, "depth", given["depth"])
    encoded = pipe.autoencoder.encoded[0]
    assert torch.equal(result.latent_BCDHW[:, :, 0, :2], encoded[:, :, :2])
    assert (result.latent_BCDHW[:, :, 0, 2:] - encoded[:, :, 2:]).abs().mean() > 0.5
    both = pipe("a", pictures=given, masks={"image": mask, "depth": mask}, how=SHORT, seed=2)
    assert both.pictures.keys() == {"image", "depth"}


def test_all_known_and_all_unknown(pipe):
    given = {"image": picture(), "depth": picture(seed=1)}
    for masks in ({}, {"image": torch.zeros(1, 1, 64, 64)}):
        with pytest.raises(ValueError, match="nothing to generate"):
            pipe("a", pictures=given, masks=masks, how=SHORT)
    unknown = pipe("a", pictures=given, masks={name: torch.ones(1, 1, 64, 64) for name in given}, how=SHORT, seed=5)
    other = pipe("a", pictures={"image": picture(seed=7), "depth": picture(seed=8)},
                 masks={name: torch.ones(1, 1, 64, 64) for name in given}, how=SHORT, seed=5)
    torch.testing.assert_close(unknown.latent_BCDHW, other.latent_BCDHW)    # strength 1 ignores what is unknown


def test_rows_of_a_batch_are_those_alone(pipe):
    """Each row has its own picture and mask; the published program uses the first for all."""
    given, masks = torch.cat([picture(), picture(seed=1)]), torch.zeros(2, 1, 64, 64)
    masks[0, :, :32], masks[1, :, :, 32:] = 1, 1
    result = pipe(["a", "b"], pictures={"image": given}, masks={"image": masks}, how=SHORT, seed=1)
    slots = result.latent_BCDHW[:, :, 0]
    encoded = pipe.autoencoder.encoded[0]
    assert torch.equal(slots[0, :, 4:], encoded[0, :, 4:]) and torch.equal(slots[1, :, :, :4], encoded[1, :, :, :4])
    several = pipe("a", pictures={"image": given}, how=SHORT, seed=1, count=2)
    assert len(several.pictures["depth"]) == 4
    assert torch.equal(several.latent_BCDHW[0, :, 0], several.latent_BCDHW[1, :, 0])
    assert not torch.equal(several.latent_BCDHW[1, :, 0], several.latent_BCDHW[2, :, 0])
    assert not torch.equal(several.latent_BCDHW[0, :, 1], several.latent_BCDHW[1, :, 1])


def test_an_ignored_domain(pipe):
    result = pipe("a", generate=["image"], how=SHORT, seed=3)
    assert result.latent_BCDHW.shape == (1, 4, 1, 8, 8) and result.pictures.keys() == {"image"}


@pytest.mark.parametrize("arguments, told", [
    ({"pictures": {"image": picture(64, 72)}, "masks": {"image": torch.ones(1, 1, 64, 64)}},
     "the mask of image is 64x64, but the result is 64x72"),
    ({"pictures": {"image": picture(), "depth": picture(32, 32)}}, "depth is 32x32"),
    ({"pictures": {"image": picture(60, 64)}}, "multiple of 8"), ({"height": 64}, "both height and width"),
    ({"masks": {"image": torch.ones(1, 1, 64, 64)}}, "has no picture"), ({"count": 0}, "count 0"),
    ({"pictures": {"albedo": picture()}}, "no domain albedo"), ({"seed": -1}, "seed -1"),
    ({"pictures": {"image": torch.rand(2, 3, 64, 64)}, "masks": {"image": torch.rand(3, 1, 64, 64)}}, "disagree"),
])
def test_arguments_that_cannot_be(pipe, arguments, told):
    with pytest.raises(ValueError, match=told):
        pipe("a", how=SHORT, **arguments)


@pytest.mark.parametrize("settings, told", [
    ({"steps": 0}, "steps 0"), ({"steps": 1000}, "from 1 to 999"), ({"strength": 1.5}, "strength 1.5"),
    ({"steps": 5, "strength": 0.1}, "nothing to do"), ({"rescale": 2.0}, "rescale 2"),
    ({"steps": 5, "offsets": [1]}, "1 offsets of windows for 5"),
])
def test_settings_that_cannot_be(settings, told):
    with pytest.raises(ValueError, match=told):
        Sampling(**settings)


def test_options_of_sampling(pipe):
    given, mask = {"image": picture()}, torch.ones(1, 1, 64, 64)
    mask[..., :32] = 0
    starts = {}
    for name, how in {"published": SHORT, "noised": replace(SHORT, noised_start=True)}.items():
        pipe("a", pictures=given, masks={"image": mask}, how=how, seed=1,
             callback=lambda step, steps, x, x0: starts.setdefault(name, x))
    known = starts["noised"][:, :, 0, :, :4] - starts["published"][:, :, 0, :, :4]
    assert torch.equal(starts["noised"][:, :, 1], starts["published"][:, :, 1]) and known.abs().max() > 0.3
    plain, rescaled, unguided = (pipe("a", how=replace(SHORT, **options), seed=1).latent_BCDHW
                                 for options in ({}, {"rescale": 0.7}, {"guidance": 1.0}))
    assert not torch.allclose(plain, rescaled) and not torch.allclose(plain, unguided)


def test_the_last_step_leaves_no_noise():
    assert sigmas([981, 1])[-1] == 0 and sigmas([981, 1], clean_end=False)[-1] == noise_levels()[0]
    assert noise_levels()[[981, 961, 381, 1, 0]].tolist() == pytest.approx(
        [13.1204, 11.6761, 1.0939, 0.041314, 0.029168], rel=1e-4)
    assert timesteps(30)[0] == 958 and len(timesteps(100, 0.29)) == 28


def test_latent_masks():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3, 3], mask[..., 8, 8] = 1.0, 128 / 255
    assert latent_mask(mask, 8).flatten().tolist() == [0, 0, 0, 1]
    assert latent_mask(mask, 8, any_unknown=True).flatten().tolist() == [1, 0, 0, 1]
    mask[..., 8, 8] = 127 / 255
    assert not latent_mask(mask, 8).any()


def test_a_panorama_is_closed(pipe):
    """Turning it is the same as moving its start; its two ends are neighbours."""
    how = replace(SHORT, tiling=Tiling((8, 8), 4, ramp=(0, 2), wrap=True, full_view=0.4))
    result = panorama(pipe, "a", size=(64, 192), how=how, seed=1)
    image = result.pictures["image"]
    assert image.shape == (1, 3, 64, 192)
    turned = pipe.decode(result.latent_BCDHW.roll(8, -1), result.roles, wrap=True)["image"]
    torch.testing.assert_close((turned / 2 + 0.5).clamp(0, 1).roll(-64, -1), image)
    assert not torch.equal(image, panorama(pipe, "a", size=(64, 192), how=how, seed=2).pictures["image"])


def test_published_panoramas():
    tiling = panorama_tiling(64)
    assert len(tiling.windows((64, 256), full=True)) == 9 and tiling.full_at(20, 50) and not tiling.full_at(21, 50)
    assert panorama_tiling(8).stride == 8


@pytest.mark.parametrize("width", [64, 104, 400])
def test_a_picture_grows_to_a_panorama(pipe, width):
    """Also to a width with less or more room than for one mirror image on both sides."""
    given = picture()
    how = replace(SHORT, tiling=Tiling((8, 8), 8, wrap=True))
    if width == 64:
        result = expand(pipe, given, width, "a", how=how, seed=1)
        assert result.pictures.keys() == {"depth"}    # nothing to add but depth
        return
    result = expand(pipe, given, width, "a", how=how, seed=1)
    left = (width - 64) // 2 // 8 + 1
    assert result.pictures["image"].shape[-1] == width
    inside = slice(left, left + 6)
    assert torch.equal(result.latent_BCDHW[:, :, 0, :, inside], pipe.autoencoder.encoded[0][..., inside])


def test_upsampling(pipe):
    given = {"image": picture(32, 48), "depth": picture(32, 48, seed=1)}
    how = Sampling(steps=4, strength=0.5, tiling=Tiling((8, 8), 4, ramp=(2, 2)))
    result = upsample(pipe, given, (64, 96), "a", how=how, seed=1)
    assert {name: made.shape for name, made in result.pictures.items()} == dict.fromkeys(given, (1, 3, 64, 96))
    large = given | {"depth": F.interpolate(given["depth"], (64, 96))}
    assert upsample(pipe, large, (64, 96), "a", given="depth", how=how, seed=1).pictures.keys() == {"image"}
    with pytest.raises(ValueError, match="depth is 32x48, but the result is 64x96"):
        upsample(pipe, given, (64, 96), "a", given="depth", how=how)
    with pytest.raises(ValueError, match="depth is missing"):
        upsample(pipe, {"image": given["image"]}, (64, 96), "a", how=how)


def test_a_window_larger_than_the_picture_is_the_picture(pipe):
    plain = pipe("a", how=SHORT, seed=1).latent_BCDHW
    tiled = pipe("a", how=replace(SHORT, tiling=Tiling((64, 64), 32, ramp=(8, 8))), seed=1).latent_BCDHW
    torch.testing.assert_close(tiled, plain, atol=1e-4, rtol=1e-4)


def test_parts_that_do_not_belong(pipe, tmp_path):
    pipe.autoencoder.channels = 16
    with pytest.raises(WeightsError, match="not the network's"):
        JointNetPipeline(pipe.network, pipe.autoencoder)
    narrow = type("Text", (), {"width": 768})()
    pipe.autoencoder.channels = 4
    with pytest.raises(WeightsError, match="width 16, the text encoder makes 768"):
        JointNetPipeline(pipe.network, pipe.autoencoder, lambda: narrow)("a")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    with pytest.raises(WeightsError, match="predicts velocity"):
        refuse_velocity(tmp_path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder as Stable Diffusion 2.1 base is published, of tiny random parts."""
    transformers, diffusers = pytest.importorskip("transformers"), pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    diffusers.AutoencoderKL(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
                            block_out_channels=[32] * 4, latent_channels=4).save_pretrained(folder / "vae")
    diffusers.DDIMScheduler().save_config(folder / "scheduler")
    transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=24, num_attention_heads=2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0)).save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    words = ["!", "<|startoftext|>", "<|endoftext|>", *"abcdefgh", *(letter + "</w>" for letter in "abcdefgh")]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "CLIPTokenizer", "pad_token": "!", "model_max_length": 77}))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A published folder of the inpaint variant."""
    folder = tmp_path_factory.mktemp("rgbd") / "checkpoint"
    for branch in ("unet", "jointnet"):
        (folder / branch).mkdir(parents=True)
        (folder / branch / "config.json").write_text(json.dumps(CASE.values["unet_config"]))
        save_file(CASE.part(f"{branch}/"), folder / branch / "diffusion_pytorch_model.safetensors")
    return folder


def test_from_files(base, model):
    pipe = JointNetPipeline.from_pretrained(model, base, device="cpu")
    given = picture()
    result = convert(pipe, given, "depth", "a b", how=SHORT, seed=1)
    assert result.pictures["depth"].shape == given.shape
    again = convert(pipe, given, "depth", "a b", how=SHORT, seed=1)
    other = convert(pipe, given, "depth", "c", how=SHORT, seed=1)
    assert torch.equal(result.latent_BCDHW, again.latent_BCDHW)
    assert not torch.equal(result.latent_BCDHW, other.latent_BCDHW)
    # A picture is encoded as a sample of the posterior, by the seed.
    means = pipe.autoencoder.encode(given * 2 - 1) * pipe.config.latent_scale
    assert 0 < (result.latent_BCDHW[:, :, 0] - means).abs().max()


def test_text_features(base):
    """The last layer of the whole tower is left out, the final norm is not; nothing is masked."""
    import transformers
    text = load_clip_text(base, dtype=torch.float32)
    assert len(text.model.encoder.layers) == 23
    features = text.encode(["a b", ""])
    assert features.shape == (2, 77, 16)
    whole = transformers.CLIPTextModel.from_pretrained(base, subfolder="text_encoder").eval()
    tokens = torch.tensor([[1, 11, 12, 2, *[0] * 73], [1, 2, *[0] * 75]])
    before_last = []
    whole.encoder.layers[22].register_forward_hook(lambda module, inputs, output: before_last.append(output))
    with torch.no_grad():
        whole(tokens)
        torch.testing.assert_close(whole.final_layer_norm(before_last[0]), features)


def test_the_command_line(base, model, tmp_path, capsys):
    from PIL import Image
    Image.effect_noise((64, 64), 60).save(tmp_path / "grey.png")
    common = ["jointnet", "--model", str(model), "--base", str(base), "--device", "cpu", "--steps", "2", "--seed", "3",
              "--output", str(tmp_path / "made")]
    image = ["--condition", f"image={tmp_path / 'grey.png'}"]
    depth = ["--condition", f"depth={tmp_path / 'grey.png'}"]
    for more, size in ((image, (64, 64)), ([*image, "--expand", "96", "--normalize"], (96, 64)),
                       (["--panorama", "--size", "64x128"], (128, 64)),
                       ([*image, *depth, "--upsample", "80x80", "--strength", "0.5"], (80, 80)),
                       ([*image, *depth, "--mask", f"depth={tmp_path / 'grey.png'}"], (64, 64))):
        assert main([*common, "--prompt", "a b", *more]) == 0, capsys.readouterr().err
        files = {Path(line).name: Path(line) for line in capsys.readouterr().out.splitlines()}
        assert {"3_00_depth.png", "3_00_depth_16bit.png", "3_sheet.png"} <= files.keys()
        assert Image.open(files["3_00_depth.png"]).size == size
    assert main([*common, "--expand", "96"]) == 2 and "--condition image=FILE" in capsys.readouterr().err


def test_stretched_maps():
    grey = picture(40, 40).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    low, high = torch.quantile(grey[:, 0].flatten(), torch.tensor([0.01, 0.99]))
    torch.testing.assert_close(stretched(grey), ((grey - low) / (high - low)).clamp(0, 1))
    assert not stretched(torch.full((1, 3, 4, 4), 0.5)).any()


def test_a_base_without_its_parts(base, model, tmp_path):
    with pytest.raises(WeightsError, match="has no folder vae"):
        JointNetPipeline.from_pretrained(model, tmp_path, device="cpu")
    shutil.copytree(base / "vae", tmp_path / "vae")
    with pytest.raises(WeightsError, match="no usable text_encoder"):
        JointNetPipeline.from_pretrained(model, tmp_path, device="cpu")("a", how=SHORT)
    values = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(values | {"scaling_factor": 0.13025}))
    with pytest.raises(WeightsError, match="0.13025.* instead of .*0.18215"):
        JointNetPipeline.from_pretrained(model, tmp_path, device="cpu")
