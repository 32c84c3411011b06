"""What the host's own save nodes write of a joint model, other sizes and domains, 8 bits: all of it loads."""

import comfy.sd
import folder_paths
import pytest
import torch
from comfy_extras.nodes_model_merging import CheckpointSave, CLIPSave, ModelSave, VAESave
from jodi_pack.jodi_core import weights
from jodi_pack.jodi_core.convert import convert
from jodi_pack.nodes.host.model import load_model
from jodi_pack.nodes.host.text import load_clip
from jodi_pack.nodes.loader import CHECKPOINT, SAME_FILE, JodiLoader
from jodi_pack.nodes.sampling import JodiJointSampler
from nodes_fixtures import relative, switch, text
from safetensors.torch import load_file

FP8 = torch.float8_e4m3fn


@pytest.fixture
def saved_into(tmp_path, monkeypatch):
    """The host's output folder, with the model folders in it that the host looks into."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    for folder in (*weights.HOST_FOLDERS.values(), "checkpoints"):
        (tmp_path / folder).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder,
                            ([str(tmp_path / folder)], {".safetensors", ".pth"}))
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.filename_list_cache.clear()


def run(model, clip, vae):
    conditioned = switch(vae, text(clip, "a red house"), text(clip, ""), generate=("image", "depth"))
    return JodiJointSampler.execute(model, *conditioned, seed=0, steps=2, cfg=3.0).result[0]["samples"]


def test_a_checkpoint_of_the_host_holds_all_parts(loaded, saved_into):
    CheckpointSave().save(*loaded, "checkpoints/all")
    name = JodiLoader.define_schema().inputs[0].options[-1]
    assert name == f"{CHECKPOINT}all_00001_.safetensors"
    assert JodiLoader.validate_inputs(name, SAME_FILE, SAME_FILE) is True
    again = JodiLoader.execute(name, SAME_FILE, SAME_FILE, "default").result
    assert again[0].model.diffusion_model.config == loaded[0].model.diffusion_model.config
    assert again[1].tokenizer.config == loaded[1].tokenizer.config
    assert torch.equal(run(*again), run(*loaded))


def test_parts_that_the_host_saved_one_by_one(loaded, saved_into):
    ModelSave().save(loaded[0], "diffusion_models/m")
    CLIPSave().save(loaded[1], "text_encoders/t")
    VAESave().save(loaded[2], "vae/v")
    again = JodiLoader.execute("m_00001_.safetensors", "t_gemma2_2b_00001_.safetensors", "v_00001_.safetensors",
                               "default").result
    assert again[1].tokenizer.config == loaded[1].tokenizer.config
    assert torch.equal(run(*again), run(*loaded))


def test_a_model_saved_with_a_lora_merged_in(loaded, saved_into):
    generator = torch.Generator().manual_seed(3)
    lora = {"diffusion_model.blocks.0.attn.qkv.lora_B.weight": torch.randn(192, 2, generator=generator) * 0.1,
            "diffusion_model.blocks.0.attn.qkv.lora_A.weight": torch.randn(2, 64, generator=generator) * 0.1,
            "diffusion_model.blocks.1.scale_shift_table.diff": torch.randn(6, 64, generator=generator) * 0.1}
    patched, _ = comfy.sd.load_lora_for_models(loaded[0], None, lora, 1.0, 0)
    with_lora = run(patched, *loaded[1:])
    ModelSave().save(patched, "diffusion_models/m")
    patched.unpatch_model()
    again = load_model(str(saved_into / "diffusion_models" / "m_00001_.safetensors"))
    assert relative(run(again, *loaded[1:]), with_lora) < 1e-5
    assert relative(run(*loaded), with_lora) > 1e-2


def test_files_in_8_bits(loaded, tiny_files, saved_into):
    """Stored as the file has them: matrices of the blocks in 8 bits, the rest in 16; results stay close."""
    for kind in ("transformer", "text_encoder"):
        convert(tiny_files[kind], saved_into / f"{kind}.safetensors", dtype=FP8)
    path = saved_into / "transformer.safetensors"
    model = load_model(str(path), {"dtype": FP8})
    stored = load_file(path)
    network = model.model.diffusion_model
    assert network.blocks[0].attn.qkv.weight.dtype == network.blocks[1].mlp.point_conv.conv.weight.dtype == FP8
    for tensor, name in ((network.final_layers[3].linear.weight, "final_layers.3.linear.weight"),
                         (network.t_block[1].bias, "t_block.1.bias"),
                         (network.blocks[0].scale_shift_table.weight, "blocks.0.scale_shift_table"),
                         (network.y_embedder.y_embedding, "y_embedder.y_embedding")):
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, stored[name])
    clip = load_clip(str(saved_into / "text_encoder.safetensors"))
    gemma = clip.cond_stage_model.gemma2_2b.transformer.model
    assert gemma.layers[0].mlp.up_proj.weight.dtype == FP8 and gemma.norm.weight.dtype == torch.bfloat16
    expected, plain = run(*loaded), load_model(str(path))
    assert 0 < relative(run(model, *loaded[1:]), expected) < 0.2
    assert torch.allclose(run(model, *loaded[1:]), run(plain, *loaded[1:]), atol=1e-5), "same numbers, wider storage"
    assert 0 < relative(text(clip, "a red house")[0][0], text(loaded[1], "a red house")[0][0]) < 0.2
    ModelSave().save(model, "diffusion_models/m")
    again = load_file(saved_into / "diffusion_models" / "m_00001_.safetensors")
    assert all(torch.equal(again[f"model.diffusion_model.{name}"].float(), tensor.float())
               for name, tensor in stored.items())
