"""JointNet Loader: published folders, single files, parts of Stable Diffusion 2.1, what does not belong together."""

import re
import shutil

import comfy.sd
import folder_paths
import pytest
import torch
from jointnet_fixtures import recorded_weights, write_published, write_stock_parts
from nodes_fixtures import PICTURE, switch, text
from safetensors.torch import load_file, save_file

from jodi_pack.jodi_core.files import WeightsError
from jodi_pack.jodi_core.jointnet import loading
from jodi_pack.jodi_core.weights import metadata_entry, tiny_bundle
from jodi_pack.nodes.decode import JodiLabelDecode
from jodi_pack.nodes.host.jointnet import load_jointnet
from jodi_pack.nodes.jointnet_loader import DTYPES, JodiJointNetLoader
from jodi_pack.nodes.loader import NO_TEXT, TINY, JodiLoader
from jodi_pack.nodes.sampling import JodiJointSampler

CHECKPOINT = "checkpoints: sd21.safetensors"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        write_stock_parts(folder, patch)
        write_published(folder / "diffusers/zip/rgbd_inpaint", True)
        write_published(folder / "diffusers/rgbd", False)
        config, tensors = recorded_weights(True)
        (folder / "diffusion_models").mkdir()
        save_file(tensors, folder / "diffusion_models/one.safetensors", {"jodi": metadata_entry("jointnet", config)})
        for name in ("text_encoders", "vae", "checkpoints", "diffusion_models", "diffusers"):
            kinds = {"folder"} if name == "diffusers" else {".safetensors"}
            patch.setitem(folder_paths.folder_names_and_paths, name, ([str(folder / name)], kinds))
        folder_paths.filename_list_cache.clear()
        yield folder
    folder_paths.filename_list_cache.clear()


def load(model="diffusers: zip/rgbd_inpaint", text_encoder=NO_TEXT, vae="kl.safetensors"):
    return JodiJointNetLoader.execute(model, text_encoder, vae, "default").result


@pytest.fixture(scope="module")
def whole(parts):
    """MODEL, CLIP and VAE."""
    with torch.inference_mode():
        return load("one.safetensors", "clip_h.safetensors")


def test_what_is_offered(parts):
    offered = {entry.id: entry.options for entry in JodiJointNetLoader.define_schema().inputs}
    assert {"diffusers: zip/rgbd_inpaint", "diffusers: rgbd", "one.safetensors"} <= set(offered["model_name"])
    assert offered["model_name"][0] == TINY
    assert offered["text_encoder_name"] == [TINY, NO_TEXT, CHECKPOINT, "clip_h.safetensors"]
    assert offered["vae_name"] == [TINY, CHECKPOINT, "kl.safetensors"]


def test_from_prompt_to_pictures(parts):
    """A folder and separate parts, or a file and a checkpoint: the same, through role switch, sampler and decoder."""
    made = []
    for names in (("diffusers: zip/rgbd_inpaint", "clip_h.safetensors", "kl.safetensors"),
                  ("one.safetensors", CHECKPOINT, CHECKPOINT)):
        model, clip, vae = load(*names)
        assert vae.joint_config == model.model.diffusion_model.config and vae.joint_config.masked_input
        conditioned = switch(vae, text(clip, "a house"), generate=("depth", "normal"), condition=("image",))
        assert conditioned[2]["samples"].shape == (1, 4, 2, 8, 8)
        sampled = JodiJointSampler.execute(model, *conditioned, 3, 3, 4.0).result[0]
        made.append(JodiLabelDecode.execute(sampled, vae).result)
        assert torch.allclose(sampled["samples"][:, :, 0], conditioned[2]["samples"][:, :, 0], atol=1e-6)
    depth, sheet = made[0][3], made[0][-1]
    assert depth.shape == (1, 64, 64, 3) and torch.equal(depth[..., 0], depth[..., 2]) and depth.std() > 0.01
    assert torch.equal(depth, made[1][3]) and torch.equal(sheet, made[1][-1])
    assert isinstance(made[0][4], type(made[0][0])), "normal, which it has not, is blocked like the given image"


def test_the_tiny_bundle(parts):
    """An autoencoder and a text encoder of another kind, and depth finished as JointNet's."""
    model, clip, vae = load(TINY, TINY, TINY)
    conditioned = switch(vae, text(clip, "a red house"), text(clip, ""), generate=("image", "depth"))
    assert conditioned[2]["samples"].shape == (1, 32, 2, 8, 8)
    sampled = JodiJointSampler.execute(model, *conditioned, 3, 3, 3.0).result[0]
    image, *_, sheet = JodiLabelDecode.execute(sampled, vae).result
    assert image.shape == (1, 128, 128, 3) and image.std() > 0.05 and sheet.std() > 0.05
    assert model.model.latent_format.spacial_downscale_ratio == 16 and vae.postprocess.__name__ == "finish"


def test_stock_nodes_on_joint_latents(whole):
    import nodes
    model, clip, vae = whole
    positive, negative = (text(clip, prompt) for prompt in ("a house", ""))
    joint = switch(vae, positive, negative, generate=("image", "depth"))
    sampled = nodes.KSampler().sample(model, 1, 3, 3.0, "euler", "ddim_uniform", *joint)[0]
    assert nodes.VAEDecode().decode(vae, sampled)[0].shape == (2, 64, 64, 3)
    assert nodes.VAEDecodeTiled().decode(vae, sampled, 64, 16)[0].shape == (2, 64, 64, 3)
    encoded = nodes.VAEEncode().encode(vae, PICTURE)[0]
    assert encoded["samples"].shape == (1, 4, 1, 5, 7)
    plain = nodes.KSampler().sample(model, 1, 2, 1.0, "euler", "ddim_uniform", positive, negative, encoded, 0.5)[0]
    assert plain["samples"].shape == (1, 4, 1, 5, 7)
    empty = nodes.EmptyLatentImage().generate(64, 64)[0]
    assert nodes.KSampler().sample(model, 1, 2, 1.0, "euler", "normal", positive, negative,
                                   empty)[0]["samples"].shape == (1, 4, 1, 8, 8)


def test_no_prompt_is_the_empty_prompt(whole, parts):
    model, clip, vae = whole
    conditioned = switch(vae, generate=("image", "depth"))
    one = JodiJointSampler.execute(model, *conditioned, 3, 2, 4.0).result[0]["samples"]
    spelled = switch(vae, text(clip, ""), text(clip, ""), generate=("image", "depth"))
    assert torch.equal(one, JodiJointSampler.execute(model, *spelled, 3, 2, 4.0).result[0]["samples"])
    with pytest.raises(ValueError, match="no stored empty prompt"):
        JodiJointSampler.execute(load_jointnet(str(parts / "diffusers/rgbd")), *conditioned, 3, 2, 4.0)
    wide = [[torch.zeros(1, 77, 32), {}]]
    with pytest.raises(ValueError, match="32 wide, but this model takes 16"):
        JodiJointSampler.execute(model, *switch(vae, wide, wide, generate=("image",)), 3, 2, 4.0)


def test_previews_have_colours(whole):
    latent_format = whole[0].model.latent_format
    assert latent_format.spacial_downscale_ratio == 8 and latent_format.scale_factor == 0.18215
    assert torch.tensor(latent_format.latent_rgb_factors).shape == (4, 3)


def test_stored_in_8_bits(whole, parts):
    """The recorded weights were rounded to e4m3, so that type is exact."""
    model, _, vae = whole
    text = [[torch.ones(1, 4, 16), {}]]
    conditioned = switch(vae, text, text, generate=("image", "depth"))

    def run(of):
        return JodiJointSampler.execute(of, *conditioned, 1, 2, 1.0).result[0]["samples"]

    small, other = (load_jointnet(str(parts / "diffusion_models/one.safetensors"), DTYPES[dtype])
                    for dtype in ("fp8_e4m3fn", "fp8_e5m2"))
    assert small.model_size() < model.model_size() / 3
    assert torch.equal(run(small), run(model))
    assert 0 < (run(other) - run(model)).abs().mean() < 0.3 * run(model).abs().mean()


def test_saved_and_merged_by_the_host(parts, tmp_path):
    """ModelSave writes a file of ours, configuration included; the loader reads it, merges included."""
    from comfy_extras.nodes_model_merging import ModelMergeSimple
    model = load_jointnet(str(parts / "diffusers/zip/rgbd_inpaint"))
    other = load_jointnet(str(parts / "diffusion_models/one.safetensors"))
    merged = ModelMergeSimple().merge(model, other, 0.5)[0]
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), merged)
    again = load_jointnet(str(tmp_path / "saved.safetensors")).model.diffusion_model
    assert again.config == model.model.diffusion_model.config
    first, second = (part.state_dict() for part in (again, model.model.diffusion_model))
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in second)


def test_a_clone_has_weights_of_its_own(whole):
    model = whole[0]
    loader, arguments = model.cached_patcher_init
    twin = loader(*arguments, disable_dynamic=True)
    assert twin.model is not model.model and torch.equal(twin.model.empty_text_1MC, model.model.empty_text_1MC)


# ---- bad input -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("change, message", [
    ({"model_name": "rgbd.zip"}, "not in models/diffusion_models or models/diffusers. Unpack https://docs-assets"),
    ({"model_name": "diffusers: ../../rgbd"}, "not in models/diffusion_models"),
    ({"text_encoder_name": "open_clip.safetensors"}, "models/text_encoders or models/checkpoints. Save https://"),
    ({"vae_name": "checkpoints: ../x"}, "not in models/vae or models/checkpoints"),
    ({"vae_name": {"a": 1}}, "not in models/vae"),
])
def test_what_is_not_there_is_named_with_where_to_get_it(parts, change, message):
    chosen = {"model_name": "diffusers: rgbd", "text_encoder_name": NO_TEXT, "vae_name": TINY}
    assert JodiJointNetLoader.validate_inputs(**chosen) is True
    told = JodiJointNetLoader.validate_inputs(**chosen | change)
    assert re.search(message, told) and len(told) < 300
    with pytest.raises(FileNotFoundError):
        JodiJointNetLoader.execute(*(chosen | change).values(), "default")


@pytest.mark.parametrize("names, message", [
    ({"vae": TINY}, "makes 32 channels and shrinks pictures 16 times, but the model takes 4 and 8"),
    ({"vae": "clip.safetensors"}, "no VAE that ComfyUI knows"),
    ({"text_encoder": TINY}, "gives 128 numbers per token, but the model takes 16"),
    ({"model": "jodi.safetensors"}, "is a Jodi transformer: choose it in Jodi Loader"),
])
def test_parts_that_do_not_belong_together(parts, names, message, monkeypatch):
    copied = {"vae/clip": parts / "text_encoders/clip_h.safetensors",
              "diffusion_models/jodi": tiny_bundle()["transformer"]}
    for name, source in copied.items():
        shutil.copy(source, parts / f"{name}.safetensors")
    folder_paths.filename_list_cache.clear()
    with pytest.raises(WeightsError, match=message):
        load(**names)
    for name in copied:
        (parts / f"{name}.safetensors").unlink()
    folder_paths.filename_list_cache.clear()


def damage(folder, which):
    file = folder / "jointnet/diffusion_pytorch_model.safetensors"
    if which == "half":
        shutil.rmtree(folder / "unet")
    elif which == "mixed":
        save_file({name: value for name, value in load_file(file).items() if "masked" not in name}, file)
    else:
        save_file(load_file(file) | {"conv_in.weight": torch.zeros(32, 5, 3, 3)}, file)


@pytest.mark.parametrize("which, message", [
    ("half", "half a JointNet: jointnet is there, unet is missing"), ("mixed", "mixes the two variants"),
    ("shape", "conv_in.weight is 32x5x3x3 instead of 32x4x3x3")])
def test_damaged_folders(parts, which, message):
    folder = parts / "diffusers/damaged"
    write_published(folder, True)
    damage(folder, which)
    with pytest.raises(WeightsError, match=message):
        load("diffusers: damaged")
    shutil.rmtree(folder)


def test_weights_that_predict_velocity_are_refused(parts, monkeypatch):
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.norm1.bias"
    monkeypatch.setattr(loading, "VELOCITY_SIGN", name)
    _, tensors = recorded_weights(True)
    assert tensors[name].std() > 0.01
    tensors[name] = tensors[name] / tensors[name].std()
    save_file(tensors, parts / "diffusion_models/velocity.safetensors")
    folder_paths.filename_list_cache.clear()
    with pytest.raises(WeightsError, match="768 pixel version.*predicts velocity"):
        load("velocity.safetensors")
    (parts / "diffusion_models/velocity.safetensors").unlink()
    folder_paths.filename_list_cache.clear()


def test_other_loaders_refuse_its_files(parts):
    with pytest.raises(WeightsError, match="is a JointNet model, but a Jodi transformer is wanted"):
        JodiLoader.execute("one.safetensors", NO_TEXT, TINY, "default")
    vae = comfy.sd.VAE(sd=load_file(parts / "vae/kl.safetensors"))
    with pytest.raises(ValueError, match="belongs to no joint model: connect that of Jodi Loader or JointNet Loader"):
        switch(vae, generate=("image",))
