"""Dual Diffusion on the real server: workflows with the tiny model, and with the recorded one lists of texts, drafts on
the way, and the messages."""

import asyncio
import json
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from jodi_prompts import add_picture, link, node
from PIL import Image

from jodi_core.domains import JODI_BINS
from scripts.comfy import ComfyError
from training.picture_folder import PictureFolder

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json")
                   if "JodiDualDiffusionLoader" in path.read_text(encoding="utf-8"))
MODEL = "diffusers: dual_diff_sd3_512_sft"


def texts(outputs: dict) -> list[str]:
    return [text for output in outputs.values() for text in output.get("text", ())]


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if name != "dual_diffusion_picture"])
def test_a_workflow_shows_texts(comfy, prompt, name):
    shown = texts(comfy.run(prompt(name)))
    assert shown and all(isinstance(text, str) and "extra_id" not in text for text in shown)


def test_a_list_of_captions_is_saved(comfy, prompt):
    shown = texts(comfy.run(prompt("caption_folder")))
    folder = comfy.base / "output" / "captions"
    assert [path.read_text() for path in sorted(folder.glob("*.txt"))] == shown and len(shown) == 2
    assert len(list(folder.glob("*.png"))) == 2


def test_captions_and_labels_are_a_data_set(comfy, prompt):
    shown = texts(comfy.run(prompt("caption_label_dataset")))
    folder = PictureFolder(comfy.base / "output" / "jodi_dataset", ("depth", "normal"), JODI_BINS)
    assert not folder.jobs and not folder.faults and folder.there == 4
    folder.write()
    lines = [json.loads(line) for line in folder.metadata.read_text().splitlines()]
    assert [line["annotation_depth"] for line in lines] == [f"annotation_depth/picture_0000{i}.png" for i in range(2)]
    assert [line.get("caption", {}).get("txt", "") for line in lines] == shown


def asking(comfy, pictures: int = 2, **changes) -> dict:
    prompt = {"load": node("JodiDualDiffusionLoader", model_name=MODEL, text_encoder_name="in the model folder",
                           vae_name="in the model folder")}
    for number in range(pictures):
        colours = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        add_picture(comfy, prompt, f"asked{number}", Image.fromarray(colours).resize((96, 64)))
    prompt["batch"] = node("ImageBatch", image1=link("asked0"), image2=link(f"asked{pictures - 1}"))
    prompt["ask"] = node("JodiAskImage", **{
        "model": link("load"), "clip": link("load", 1), "vae": link("load", 2), "image": link("batch"), "seed": 5,
        "question": "what colour is the house ?", "style": "free", "steps": 3, "length": 20} | changes)
    prompt["answers"] = node("PreviewAny", source=link("ask"))
    prompt["whole"] = node("PreviewAny", source=link("ask", 1))
    return prompt


def test_a_batch_gives_a_list(comfy):
    outputs = comfy.run(asking(comfy))
    assert len(outputs["answers"]["text"]) == 2
    assert all(text.startswith("Q: what colour is the house? A:") for text in outputs["whole"]["text"])


async def heard(comfy, prompt: dict) -> list[tuple[str, object]]:
    """What a page hears during a run: (type, data) of its messages; of text below nodes ("text", (node, text))."""
    found = []
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{comfy.url}/ws?clientId=listener") as socket:
        await asyncio.to_thread(comfy.post, "/prompt", {"prompt": prompt, "client_id": "listener"})
        async for message in socket:
            if message.type == aiohttp.WSMsgType.TEXT:
                content = json.loads(message.data)
                found.append((content["type"], content["data"]))
                if content["type"] in ("execution_success", "execution_error"):
                    return found
            elif int.from_bytes(message.data[:4]) == 3:
                end = 8 + int.from_bytes(message.data[4:8])
                found.append(("text", (message.data[8:end].decode(), message.data[end:].decode())))


def test_drafts_and_progress_arrive(comfy):
    """What the frontend gets while a text is written."""
    told = asyncio.run(asyncio.wait_for(heard(comfy, asking(comfy, seed=77)), 60))
    drafts = [text for name, text in told if name == "text" and text[0] == "ask"]
    assert len(drafts) == 3 and drafts[0][1].count(" _") > drafts[-1][1].count(" _")
    assert drafts[0][1].startswith("Q: what colour") and drafts[0][1].count("\n") == 1
    steps = [value["nodes"]["ask"]["value"] for name, value in told
             if name == "progress_state" and "ask" in value["nodes"]]
    assert steps == sorted(steps) and steps[0] < steps[-1] == 3


@pytest.mark.parametrize("changes, words", [
    ({"question": " "}, "the question is empty"),
    ({"steps": 0}, "smaller than min"),
    ({"length": 8}, "nothing is left for the answer"),
    ({"resolution": 512}, "resolution 512 must be a multiple of 16 up to 192"),
    ({"model": link("jodi")}, "this MODEL writes no text: connect that of Load Dual Diffusion"),
    ({"clip": link("jodi", 1)}, "no T5 with the tokenizer of Dual Diffusion"),
])
def test_questions_that_cannot_be(comfy, changes, words):
    prompt = asking(comfy, **changes)
    prompt["jodi"] = node("JodiLoader", model_name="tiny (bundled)", text_encoder_name="tiny (bundled)",
                          vae_name="tiny (bundled)", weight_dtype="default")
    with pytest.raises(ComfyError, match=words):
        comfy.run(prompt)


def test_a_question_without_a_picture(comfy):
    prompt = asking(comfy)
    del prompt["ask"]["inputs"]["image"]
    with pytest.raises(ComfyError, match="Required input is missing.*image"):
        comfy.run(prompt)


@pytest.mark.parametrize("name, words", [
    ("diffusers: ../../secret", "is not in models/diffusion_models or models/diffusers. Run `hf download"),
    ("Jodi.pth", "hf download JleeOfficial/dual_diff_sd3_512_base")])
def test_models_that_are_not_there(comfy, name, words):
    prompt = asking(comfy)
    prompt["load"]["inputs"]["model_name"] = name
    with pytest.raises(ComfyError, match=words):
        comfy.run(prompt)


def test_sizes_that_cannot_be(comfy, prompt):
    workflow = prompt("dual_diffusion_picture")
    next(part["inputs"] for part in workflow.values() if part["class_type"] == "JodiDualDiffusionLoader")[
        "model_name"] = MODEL
    empty = next(part["inputs"] for part in workflow.values() if part["class_type"] == "EmptySD3LatentImage")
    for size in (8000, 208):
        empty |= {"width": size, "height": 64}
        with pytest.raises(ComfyError, match=f"latents of 8x{size // 8}: both sides must be divisible by 2"):
            comfy.run(workflow)
