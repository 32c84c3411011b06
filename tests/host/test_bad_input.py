"""Bad input over HTTP: a message that says what to do, nothing executed that should not be, the server alive after."""

import json
import pickle
import shutil
import time

import numpy as np
import pytest
from jodi_prompts import TINY, add_picture, joint_prompt, node, run
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jodi_core.domains import JODI_DOMAINS
from jodi_core.weights import tiny_bundle
from scripts.comfy import ComfyError

DEPTH_OF = {"image": "picture", "depth": "generate"}


def fails(server, prompt: dict, *words: str) -> None:
    """The prompt is refused or fails, and the message contains all of the words."""
    with pytest.raises(ComfyError) as failure:
        server.run(prompt)
    message = str(failure.value)
    assert all(word in message for word in words), message
    assert len(message) < 1500, "a message to read, not a dump"


@pytest.fixture
def model_file(server):
    """model_file(name) is a path among the host's transformers."""
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    made = []

    def of(name: str):
        made.append(folder / name)
        return made[-1]

    yield of
    for path in made:
        path.unlink(missing_ok=True)


def altered_tiny(path, change) -> None:
    """The tiny transformer, after change(tensors, description), as a file."""
    source = tiny_bundle()["transformer"]
    with safe_open(source, "pt") as opened:
        description = json.loads(opened.metadata()["jodi"])
    tensors = load_file(source)
    change(tensors, description)
    save_file(tensors, path, {"jodi": json.dumps(description)})


def missing_key(tensors, description):
    del tensors["t_block.1.weight"]


def wrong_shape(tensors, description):
    tensors["t_block.1.weight"] = tensors["t_block.1.weight"][:-1].contiguous()


def lying_depth(tensors, description):
    description["config"]["depth"] += 1


def lying_domains(tensors, description):
    description["config"]["domains"].append("thermal")


def unknown_setting(tensors, description):
    description["config"]["wings"] = 2


@pytest.mark.parametrize("change, word", [
    (missing_key, "t_block.1.weight"), (wrong_shape, "t_block.1.weight"), (lying_depth, "depth"),
    (lying_domains, "domain"), (unknown_setting, "wings")])
def test_altered_weights(comfy, model_file, change, word):
    altered_tiny(model_file("altered.safetensors"), change)
    fails(comfy, joint_prompt({"image": "generate"}, model="altered.safetensors"), "JodiLoader", word)


def test_garbage_weights(comfy, model_file):
    model_file("garbage.safetensors").write_bytes(np.random.default_rng(0).bytes(5000))
    fails(comfy, joint_prompt({"image": "generate"}, model="garbage.safetensors"), "garbage.safetensors")


def test_truncated_weights(comfy, model_file):
    whole = tiny_bundle()["transformer"].read_bytes()
    model_file("half.safetensors").write_bytes(whole[:len(whole) // 2])
    fails(comfy, joint_prompt({"image": "generate"}, model="half.safetensors"), "half.safetensors")


def test_pickle_that_executes_code(comfy, model_file, tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    model_file("evil.pth").write_bytes(pickle.dumps({"x_embedders.0.proj.weight": Payload()}))
    fails(comfy, joint_prompt({"image": "generate"}, model="evil.pth"), "evil.pth")
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_kind(comfy, model_file):
    shutil.copy(tiny_bundle()["autoencoder"], model_file("vae.safetensors"))
    fails(comfy, joint_prompt({"image": "generate"}, model="vae.safetensors"), "autoencoder", "transformer")


def test_weights_outside_the_model_folders(comfy):
    fails(comfy, joint_prompt({"image": "generate"}, model="../../secret.safetensors"), "model_name")


def test_all_domains_ignored(comfy):
    fails(comfy, joint_prompt({}) | save_sheet(), "nothing to generate")


def test_only_conditions(comfy):
    prompt = joint_prompt({"image": "white"}) | save_sheet()
    prompt["white"] = node("EmptyImage", width=128, height=128, batch_size=1, color=0xFFFFFF)
    fails(comfy, prompt, "nothing to generate", "image")


def save_sheet() -> dict:
    return {"save": node("SaveImage", images=["decode", len(JODI_DOMAINS)], filename_prefix="sheet")}


def test_condition_without_a_picture(comfy):
    fails(comfy, joint_prompt({"depth": None, "image": "generate"}), "depth", "picture")


def test_batches_that_disagree(comfy):
    prompt = joint_prompt({"depth": "three", "normal": "two", "image": "generate"})
    prompt["three"] = node("EmptyImage", width=128, height=128, batch_size=3, color=0)
    prompt["two"] = node("EmptyImage", width=128, height=128, batch_size=2, color=0)
    fails(comfy, prompt, "depth has 3", "normal has 2")


@pytest.mark.parametrize("width, height, masks, what", [
    (256, 128, 1, "does not lie over 128x128"), (128, 128, 3, "the mask of image has 3")])
def test_masks_that_do_not_fit(comfy, width, height, masks, what):
    prompt = joint_prompt({"image": "generate"})
    prompt |= {"two": node("EmptyImage", width=128, height=128, batch_size=2, color=0),
               "mask": node("ImageToMask", image=["wide", 0], channel="red"),
               "wide": node("EmptyImage", width=width, height=height, batch_size=masks, color=0xFFFFFF)}
    prompt["roles"]["inputs"] |= {"image": "edit", "image.image_picture": ["two", 0], "image.image_mask": ["mask", 0]}
    fails(comfy, prompt, what)


def test_panorama_narrower_than_its_picture(comfy):
    prompt = {"picture": node("EmptyImage", width=256, height=128, batch_size=1, color=0),
              "canvas": node("JodiPanoramaCanvas", image=["picture", 0], width=128),
              "save": node("SaveImage", images=["canvas", 0], filename_prefix="canvas")}
    fails(comfy, prompt, "128 pixels wide has no room for a picture of 256")


@pytest.mark.parametrize("settings", [{"steps": 1}, {"cfg": 0.0}, {"cfg": 1.0}, {"text": ""}], ids=str)
def test_extreme_settings_run(comfy, settings):
    picture = run(comfy, joint_prompt({"image": "generate"}, **settings))["image"]
    assert picture.shape == (1, 128, 128, 3) and picture.std() > 0


def gradient(mode: str, width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    grey = (rows + columns) / max(1, height + width - 2)
    if mode == "I;16":
        return Image.fromarray((grey * 65535).astype(np.uint16))
    return Image.fromarray((grey * 255).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("mode, width, height", [
    ("RGB", 1, 1), ("RGB", 8000, 3000), ("L", 100, 300), ("RGBA", 300, 200), ("I;16", 64, 64), ("P", 50, 50)])
def test_pictures_of_every_kind(comfy, mode, width, height):
    prompt = joint_prompt(DEPTH_OF)
    add_picture(comfy, prompt, "picture", gradient(mode, width, height))
    assert run(comfy, prompt)["depth"].shape[0] == 1


def test_thread_like_picture(comfy):
    prompt = joint_prompt(DEPTH_OF)
    add_picture(comfy, prompt, "picture", gradient("RGB", 8000, 1))
    fails(comfy, prompt, "8000x1", "elongated")


def test_corrupt_picture(comfy):
    prompt = joint_prompt(DEPTH_OF)
    add_picture(comfy, prompt, "picture", gradient("RGB", 64, 64))
    (comfy.base / "input" / "picture.png").write_bytes(b"\x89PNG, and then nothing of the kind")
    fails(comfy, prompt, "picture.png")


def test_interrupt_in_the_middle_of_sampling(comfy):
    expected = run(comfy, joint_prompt({"image": "generate"}, seed=3))["image"]
    started = comfy.queue(joint_prompt({"image": "generate"}, seed=4, steps=1000))
    while not comfy.get("/queue")["queue_running"]:
        time.sleep(0.05)
    time.sleep(0.5)  # everything before the sampler is in the host's cache, so it samples by now
    asked = time.monotonic()
    comfy.post("/interrupt", {})
    status = comfy.wait(started, patience=30)["status"]
    assert time.monotonic() - asked < 10
    interrupted = dict(status["messages"])["execution_interrupted"]
    assert interrupted["node_type"] == "JodiJointSampler"
    comfy.post("/free", {"free_memory": True, "unload_models": True})
    assert np.array_equal(run(comfy, joint_prompt({"image": "generate"}, seed=3))["image"], expected)


def test_text_encoder_left_out_where_it_is_needed(comfy):
    fails(comfy, joint_prompt({"image": "generate"}, text_encoder="none"), "CLIPTextEncode", "clip")


def test_perception_needs_no_text_encoder(comfy):
    prompt = joint_prompt(DEPTH_OF, text_encoder="none", vae=TINY)
    del prompt["text"], prompt["roles"]["inputs"]["positive"]
    add_picture(comfy, prompt, "picture", gradient("RGB", 128, 128))
    assert run(comfy, prompt)["depth"].shape == (1, 128, 128, 3)
