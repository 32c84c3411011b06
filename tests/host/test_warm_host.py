"""After the first picture nothing is loaded again, whatever is asked next."""

import os
import shutil

import pytest
from jodi_prompts import joint_prompt, link, node

from jodi_core.weights import tiny_bundle

FILES = {"transformer": "diffusion_models", "text_encoder": "text_encoders", "autoencoder": "vae"}
FIRST = {"image": "generate", "depth": "generate"}


def ask(roles=FIRST, **settings) -> dict:
    """A joint prompt of the files of this test."""
    prompt = joint_prompt(roles, model="warm_transformer.safetensors", text_encoder="warm_text_encoder.safetensors",
                          vae="warm_autoencoder.safetensors", **settings)
    return prompt | {"scene": node("EmptyImage", width=128, height=128, batch_size=1, color=0x80A0C0)}


@pytest.fixture(scope="module")
def warm(server):
    """A server that has answered one prompt, and whose model files are unusable since."""
    places = {server.base / "models" / folder / f"warm_{kind}.safetensors": tiny_bundle()[kind]
              for kind, folder in FILES.items()}
    for place, source in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
    server.run(ask())
    for place in places:
        broken = place.with_suffix(".broken")
        broken.write_bytes(b"no weights")
        os.replace(broken, place)    # the old file lives on where it is mapped into memory
    return server


@pytest.mark.parametrize("change", [
    {"text": "a blue car on the right"}, {"roles": {"depth": "generate", "image": "scene"}},
    {"roles": {"image": "generate", "normal": "scene", "albedo": "generate"}}, {"size": (192, 64)}, {"batch": 2},
    {"steps": 3, "cfg": 1.0, "seed": 2}], ids=lambda change: "-".join(change))
def test_nothing_is_read_again(comfy, warm, change):
    prompt = ask(**change)
    entry = warm.wait(warm.queue(prompt))
    events = dict(entry["status"]["messages"])
    assert entry["status"]["status_str"] == "success", events
    assert "load" in events["execution_cached"]["nodes"] and "sample" not in events["execution_cached"]["nodes"]


def test_the_files_are_unusable(warm):
    """Else the tests above would prove nothing: a loader with another number type has to read them."""
    prompt = ask()
    prompt["load"]["inputs"]["weight_dtype"] = "fp8_e4m3fn"
    entry = warm.wait(warm.queue(prompt | {"shown": node("PreviewImage", images=link("decode"))}))
    assert entry["status"]["status_str"] == "error"
