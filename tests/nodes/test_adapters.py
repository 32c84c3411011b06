"""The random tiny model as MODEL, CLIP and VAE of the host: values, stock sampling, patches, saving."""

import comfy.sample
import comfy.sd
import comfy.utils
import nodes as host_nodes
import pytest
import torch
from nodes_fixtures import PICTURE, relative, switch, text

from jodi_core.domains import JODI_DOMAINS
from jodi_core.pipeline import JodiPipeline
from jodi_pack.nodes import joint
from jodi_pack.nodes.decode import JodiLabelDecode
from jodi_pack.nodes.sampling import JodiJointSampler

@pytest.fixture(scope="module")
def pipeline(tiny_folder):
    return JodiPipeline.from_pretrained(tiny_folder, device="cpu", dtype=torch.float32)


def test_joint_generation_equals_the_pipeline(loaded, pipeline):
    model, clip, vae = loaded
    prompt, negative = "a red house beside a lake", "a tree"
    conditioned = switch(vae, text(clip, prompt), text(clip, negative), generate=JODI_DOMAINS)
    latent = JodiJointSampler.execute(model, *conditioned, seed=7, steps=3, cfg=4.5).result[0]
    *pictures, sheet = JodiLabelDecode.execute(latent, vae).result
    expected = pipeline(prompt, negative_prompt=negative, seed=7, steps=3, guidance=4.5)
    for name, picture in zip(JODI_DOMAINS, pictures):
        assert torch.allclose(picture.movedim(-1, 1), expected.pictures[name], atol=2e-3), name
    assert sheet.shape[0] == 1 and sheet.shape[-1] == 3


def test_perception_equals_the_pipeline_and_needs_no_text(loaded, pipeline):
    model, _, vae = loaded
    conditioned = switch(vae, generate=("depth", "normal"), condition=("image",))
    latent = JodiJointSampler.execute(model, *conditioned, seed=3, steps=3, cfg=4.5).result[0]
    outputs = dict(zip(JODI_DOMAINS, JodiLabelDecode.execute(latent, vae).result))
    expected = pipeline(conditions={"image": PICTURE.movedim(-1, 1)}, generate=("depth", "normal"), seed=3, steps=3)
    assert outputs["depth"].shape == (1, 32, 64, 3)    # the training size nearest to 40x60
    for name, picture in expected.pictures.items():
        assert torch.allclose(outputs[name].movedim(-1, 1), picture, atol=2e-3), name
    assert not torch.is_tensor(outputs["image"]) and outputs["image"].message is None    # nodes behind it are skipped


def test_perception_evaluates_one_branch(loaded, monkeypatch):
    model, _, vae = loaded
    rows = []
    network = model.model.diffusion_model
    velocity = network.velocity
    monkeypatch.setattr(network, "velocity", lambda x, *rest: rows.append(len(x)) or velocity(x, *rest))
    JodiJointSampler.execute(model, *switch(vae, generate=("depth",), condition=("image",)), seed=0, steps=2, cfg=4.5)
    assert rows == [1, 1]


@pytest.mark.parametrize("roles", [
    {"generate": JODI_DOMAINS}, {"generate": ("image",), "condition": ("depth", "edge")},
    {"generate": ("depth", "normal"), "condition": ("image",)}, {"generate": ("image",)}])
def test_stock_ksampler_runs_it(loaded, roles):
    model, clip, vae = loaded
    positive, negative, latent = switch(vae, text(clip, "a blue car"), text(clip, ""), batch_size=2, **roles)
    result, = host_nodes.KSampler().sample(model, 5, 3, 4.5, "euler", "simple", positive, negative, latent)
    travelling = result[joint.ROLES]
    travelling.check_latent(result["samples"])
    given, made = list(travelling.condition_slots), list(travelling.generated_slots)
    assert torch.allclose(result["samples"][:, :, given], latent["samples"][:, :, given], atol=1e-5)
    assert result["samples"][:, :, made].std() > 0.1
    assert len(host_nodes.VAEDecode().decode(vae, result)[0]) == 2 * len(travelling.active)


def test_wrappers_of_the_network_may_change_their_x(loaded):
    """Step caches do so, and look for the options in the last place."""
    from comfy.patcher_extension import WrappersMP
    model, _, vae = loaded
    conditioned = switch(vae, generate=("depth",), condition=("image",))

    def spoil(executor, x, *arguments):
        assert "sigmas" in arguments[-1] and "uuids" in arguments[-1]
        result = executor(x.clone(), *arguments)
        x.zero_()
        return result

    wrapped = model.clone()
    wrapped.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", spoil)
    plain, spoiled = (JodiJointSampler.execute(of, *conditioned, seed=0, steps=2, cfg=1.0).result[0]["samples"]
                      for of in (model, wrapped))
    assert torch.equal(plain, spoiled)


def test_mask_keeps_what_it_does_not_cover(loaded):
    """The host's inpainting mask: the left half is drawn anew, the right half stays."""
    model, _, vae = loaded
    positive, negative, latent = switch(vae, generate=("image", "depth"))
    first, = JodiJointSampler.execute(model, positive, negative, latent, seed=0, steps=2, cfg=1.0).result
    mask = torch.zeros(1, 48, 48)
    mask[:, :, :24] = 1
    masked, = host_nodes.SetLatentNoiseMask().set_mask(first, mask)
    second, = JodiJointSampler.execute(model, positive, negative, masked, seed=1, steps=2, cfg=1.0).result
    changed = (second["samples"] - first["samples"]).abs().amax((0, 1, 2, 3))
    assert (changed[:3] > 0.1).all() and (changed[3:] < 1e-5).all()


def test_text_to_image_without_the_role_switch(loaded):
    model, clip, vae = loaded
    empty, = host_nodes.EmptyLatentImage().generate(64, 48, 1)
    positive, negative = text(clip, "a tree"), text(clip, "")
    result, = host_nodes.KSampler().sample(model, 5, 2, 4.5, "euler", "simple", positive, negative, empty)
    assert result["samples"].shape == (1, 8, 1, 6, 8)
    assert host_nodes.VAEDecode().decode(vae, result)[0].shape == (1, 48, 64, 3)


def test_text_features_equal_the_pipelines(loaded, pipeline):
    _, clip, _ = loaded
    (cond, values), = text(clip, "a red house, --ar 3:4 of it")
    features, lengths = pipeline.text_encoder.encode(["a red house,"])
    assert cond.shape == features.shape == (1, int(lengths[0]), 64)
    assert relative(cond, features) < 1e-5
    plain = pipeline.text_encoder.encode_negative(["a red house,"])
    assert relative(values[joint.PLAIN].features_1MC, plain) < 1e-5
    (empty, _), = text(clip, "")
    assert relative(empty, pipeline.text_encoder.encode_negative([""])) < 1e-5


def test_autoencoder_equals_the_pipelines(loaded, pipeline):
    vae = loaded[2]
    pixels = PICTURE[:, :, :57]    # not a multiple of 8: the host crops to the middle
    latent, = host_nodes.VAEEncode().encode(vae, pixels)
    assert relative(latent["samples"][:, :, 0],
                    pipeline.autoencoder.encode(pixels[:, :, :56].movedim(-1, 1) * 2 - 1)) < 2e-6
    decoded = vae.decode(latent["samples"])
    assert torch.allclose(decoded[:, 0].movedim(-1, 1) * 2 - 1,
                          pipeline.autoencoder.decode(latent["samples"][:, :, 0]).clamp(-1, 1), atol=1e-5)


def test_tiled_decoding_has_the_same_layout(loaded):
    vae = loaded[2]
    samples = {"samples": torch.randn(2, 8, 3, 12, 16)}
    whole, = host_nodes.VAEDecode().decode(vae, samples)
    tiled, = host_nodes.VAEDecodeTiled().decode(vae, samples, 64, overlap=16)
    assert whole.shape == tiled.shape == (6, 96, 128, 3)


def test_lora_reaches_matrices_and_tables(loaded):
    """LoRA and table differences change the result, and as a merge of the same numbers would."""
    model, _, vae = loaded
    network = model.model.diffusion_model
    rank_up, rank_down = torch.randn(192, 2) * 0.1, torch.randn(2, 64) * 0.1
    table = torch.randn(6, 64) * 0.1
    lora = {"diffusion_model.blocks.0.attn.qkv.lora_B.weight": rank_up,
            "diffusion_model.blocks.0.attn.qkv.lora_A.weight": rank_down,
            "diffusion_model.blocks.1.scale_shift_table.diff": table}
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)
    conditioned = switch(vae, generate=("depth",), condition=("image",))

    def run(of):
        return JodiJointSampler.execute(of, *conditioned, seed=0, steps=2, cfg=1.0).result[0]["samples"]

    plain, with_lora = run(model), run(patched)
    patched.unpatch_model()
    assert not torch.equal(plain, with_lora)
    qkv, rows = network.blocks[0].attn.qkv.weight, network.blocks[1].scale_shift_table.weight
    saved = qkv.clone(), rows.clone()
    qkv.add_(rank_up @ rank_down), rows.add_(table)
    merged = run(model)
    qkv.copy_(saved[0]), rows.copy_(saved[1])
    assert relative(with_lora, merged) < 1e-5
    assert relative(run(model), plain) < 1e-6


def test_saved_model_loads_again(loaded, tiny_files, tmp_path):
    """What the host's ModelSave writes: names and values of the file that was loaded, and its configuration."""
    from jodi_pack.nodes.host.model import load_model
    from safetensors.torch import load_file
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), loaded[0])
    saved, original = load_file(tmp_path / "saved.safetensors"), load_file(tiny_files["transformer"])
    assert {f"model.diffusion_model.{name}" for name in (*original, "jodi_metadata")} == saved.keys()
    assert all(torch.equal(saved[f"model.diffusion_model.{name}"], value) for name, value in original.items())
    again = load_model(str(tmp_path / "saved.safetensors")).model.diffusion_model
    assert again.config == loaded[0].model.diffusion_model.config
    assert torch.equal(again.domain_embedding.weight, original["domain_embedding"])


def test_fp8_storage(tiny_files, loaded):
    from jodi_pack.nodes.host.model import load_model
    vae = loaded[2]
    model = load_model(str(tiny_files["transformer"]), {"dtype": torch.float8_e4m3fn})
    network = model.model.diffusion_model
    assert network.blocks[0].attn.qkv.weight.dtype == torch.float8_e4m3fn
    conditioned = switch(vae, generate=("depth",), condition=("image",))
    samples = [JodiJointSampler.execute(of, *conditioned, seed=0, steps=2, cfg=1.0).result[0]["samples"][:, :, 1]
               for of in (loaded[0], model)]
    assert 0 < relative(samples[1], samples[0]) < 0.3


def test_preview_shows_every_domain_in_its_colours(loaded):
    """One picture of all domains, in colours fitted to the autoencoder, through the host's own previewer."""
    from comfy.cli_args import LatentPreviewMethod, args
    from jodi_pack.nodes.host.latent import JointLatent, lay_out_domains
    from latent_preview import get_previewer
    model, _, vae = loaded
    latent_format = JointLatent(model.model.diffusion_model.config)
    latent_format.preview_with(vae)
    x0 = torch.arange(7.0).reshape(1, 1, 7, 1, 1).expand(1, 8, 7, 2, 3)
    layout = lay_out_domains(x0)[0, 0]
    assert layout.shape == (4, 12)
    assert layout[0, ::3].tolist() == [0, 1, 2, 3] and layout[2, ::3].tolist() == [4, 5, 6, 0]
    factors, bias = torch.tensor(latent_format.latent_rgb_factors), torch.tensor(latent_format.latent_rgb_factors_bias)
    assert factors.shape == (8, 3) and bias.shape == (3,) and factors.isfinite().all()
    method, args.preview_method = args.preview_method, LatentPreviewMethod.Latent2RGB
    try:
        kind, picture, _ = get_previewer(torch.device("cpu"), latent_format).decode_latent_to_preview_image("JPEG", x0)
    finally:
        args.preview_method = method
    assert picture.size == (12, 4)
