"""Random and hostile prompts: every one is answered, with a message that a person wrote."""

import json
import os
import random

import pytest
from chains import chains
from hostile import is_no_prompt, spoil
from jodi_prompts import joint_prompt, run

from scripts.comfy import PACK_DIR, ComfyError

SHORT, LONG = 80, 1200
PATIENCE = 60    # seconds for a prompt
# What nobody writes on purpose.
ACCIDENTS = ("AttributeError", "KeyError", "IndexError", "TypeError", "AssertionError", "ZeroDivisionError",
             "OverflowError", "UnboundLocalError", "NameError", "StopIteration", "RuntimeError", "RecursionError")


def failure_of(server, prompt: dict) -> dict | None:
    """The execution error of a prompt; None if it succeeded or was refused before it ran (with reasons)."""
    try:
        number = server.queue(prompt)
    except ComfyError as error:
        assert error.details.get("error", {}).get("message"), error
        return None
    try:
        entry = server.wait(number, PATIENCE)
    except ComfyError as error:
        pytest.fail(f"{error}: {json.dumps(prompt)}")
    if entry["status"]["status_str"] == "success":
        return None
    return dict(entry["status"]["messages"])["execution_error"]


def is_ours(failure: dict) -> bool:
    """Whether the last frame of the traceback, or the node, is of this pack."""
    frames = [line for line in failure["traceback"] if line.lstrip().startswith("File")]
    return failure["node_type"].startswith("Jodi") or any(PACK_DIR in frame for frame in frames[-1:])


def files_outside(base) -> dict:
    """Path -> (size, time) of everything beside the server's own folder."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in base.parent.rglob("*")
            if path.is_file() and not path.is_relative_to(base)}


def fuzz(server, count: int, seed: int) -> dict:
    """Run spoiled prompts; returns what came of them. AssertionError lists what was answered badly."""
    canary = server.base.parent / "canary.txt"
    canary.write_text("untouched")
    before, rng, all_chains = files_outside(server.base), random.Random(seed), chains()
    object_info = server.get("/object_info")
    counts, accidents = {"ran": 0, "failed": 0}, []
    for number in range(count):
        prompt = spoil(all_chains[rng.choice(list(all_chains))], rng)
        failure = failure_of(server, prompt)
        counts["ran" if failure is None else "failed"] += 1
        if failure is None:
            continue
        kind, message = failure["exception_type"].rpartition(".")[2], failure["exception_message"].strip()
        assert message, failure
        if is_no_prompt(prompt, object_info):
            continue
        if is_ours(failure) and (kind in ACCIDENTS or len(message) < 15):
            accidents.append(f"{number}: {failure['node_type']}: {kind}: {message[:200]}\n"
                             f"{''.join(failure['traceback'][-2:])}\n{json.dumps(prompt)[:3000]}")
    assert not accidents, f"{len(accidents)} of {count}:\n" + "\n\n".join(accidents[:12])
    assert files_outside(server.base) == before and canary.read_text() == "untouched"
    assert run(server, joint_prompt({"image": "generate"}, steps=1, seed=seed))["image"].std() > 0
    return counts


def test_chains_run_as_they_are(server):
    for name, prompt in chains().items():
        assert (failure := failure_of(server, prompt)) is None, (name, failure["exception_message"])


def test_spoiled_prompts(server):
    print(fuzz(server, SHORT, seed=1))


@pytest.mark.long
def test_many_spoiled_prompts(server):
    print(fuzz(server, LONG, seed=int(os.environ.get("FUZZ_SEED", 2))))
