"""Hundreds of prompts of all kinds, some interrupted, on one server: no failure, and memory that stays."""

import random
import sys
import threading
from pathlib import Path

import pytest
from chains import chains
from jodi_prompts import LABELS, joint_prompt, link, node

from scripts.comfy import Comfy

SIZES = ((128, 128), (160, 96), (96, 160), (192, 128), (64, 64))
COUNT, WARM_UP, GROWTH = 900, 300, 0.03    # prompts; growth of the memory after the warm-up


@pytest.fixture(scope="module")
def frugal(comfyui, tmp_path_factory):
    """A server whose C library gives freed memory back at once, so that what is seen is what is held: by default glibc
    keeps pieces between the pieces, and what it keeps grows for hours with prompts of many sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
        patch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
        base, pack = tmp_path_factory.mktemp("soak"), Path(__file__).resolve().parents[2]
        with Comfy(comfyui, Path(sys.executable), base, pack, "--cpu") as running:
            yield running


def resident(pid: int) -> float:
    """MB of a process, without pages that files back."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) / 1024


def some_prompt(rng: random.Random) -> dict:
    """A task with random roles, size, seed and batch."""
    if rng.random() < 0.3:
        prompt = dict(rng.choice(list(chains().values())))
        prompt["salt"] = node("PreviewAny", source=str(rng.random()))    # so that it is not all cached
        return prompt
    task = rng.choice(("joint", "control", "perceive"))
    labels = rng.sample(LABELS, rng.randint(1, len(LABELS)))
    roles = {"joint": dict.fromkeys(("image", *labels), "generate"),
             "control": {"image": "generate"} | dict.fromkeys(labels, "picture"),
             "perceive": {"image": "picture"} | dict.fromkeys(labels, "generate")}[task]
    prompt = joint_prompt(roles, seed=rng.getrandbits(40), steps=rng.randint(1, 4), batch=rng.randint(1, 3),
                          size=rng.choice(SIZES), cfg=rng.choice((1.0, 3.0)))
    prompt["picture"] = node("EmptyImage", width=rng.randint(16, 300), height=rng.randint(16, 300), batch_size=1,
                             color=rng.getrandbits(24))
    if rng.random() < 0.3:
        prompt["sample"] = node("KSampler", **prompt["sample"]["inputs"] | {
            "sampler_name": rng.choice(("euler", "dpmpp_2m", "heun")), "scheduler": "simple", "denoise": 1.0,
            "latent_image": link("roles", 2)})
    return prompt


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_soak(frugal):
    rng, memory, ends = random.Random(0), [], {"success": 0, "interrupted": 0}
    for number in range(COUNT):
        queued = frugal.queue(some_prompt(rng))
        timer = threading.Timer(rng.random() / 4, frugal.post, ("/interrupt", {}))
        if rng.random() < 0.25:
            timer.start()
        entry = frugal.wait(queued, 120)
        timer.cancel()
        frugal.post("/history", {"clear": True})    # ComfyUI keeps what it ran, up to 10 000 prompts
        kinds = {kind for kind, _ in entry["status"]["messages"]}
        interrupted = "execution_interrupted" in kinds
        assert interrupted or entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
        ends["interrupted" if interrupted else "success"] += 1
        memory.append(resident(frugal.process.pid))
    told = {n: round(memory[n - 1]) for n in (20, *range(100, COUNT + 1, 100))}
    print(ends, "MB after prompts:", told)
    assert max(memory[-50:]) < max(memory[:WARM_UP]) * (1 + GROWTH), told
