"""The demo: a real ComfyUI, this pack, the joint workflow on the tiny model, pictures. Standard library only."""

import argparse
import json
import sys
import webbrowser
from pathlib import Path

from . import environment
from .comfy import Comfy, ComfyError
from .workflow import to_prompt

WORKFLOW = "joint_generation.json"
# Says whether ComfyUI would find an accelerator; without one it must be told so, or it does not start.
HAS_ACCELERATOR = "import torch; print(torch.cuda.is_available() or torch.backends.mps.is_available())"


class DemoError(Exception):
    """The demo cannot go on; the message says what to do."""


def run(root: Path, options: argparse.Namespace) -> int:
    """Set up, run the workflow, print the paths of the pictures; with `open`, leave ComfyUI running until Ctrl+C."""
    comfyui, python = find_host(root, options)
    options.output.mkdir(parents=True, exist_ok=True)
    accelerated = environment.capture(python, HAS_ACCELERATOR) == "True"
    print("starting ComfyUI", flush=True)
    try:
        with Comfy(comfyui, python, root / ".comfyui" / "demo", root, "--output-directory",
                   str(options.output.resolve()), *([] if accelerated else ["--cpu"])) as server:
            generate(server, root / "workflows" / WORKFLOW, options)
            if options.open:
                leave_running(server, root)
    except ComfyError as error:
        raise DemoError(str(error)) from None
    return 0


def find_host(root: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """(ComfyUI's folder, the Python that runs it): the user's own, or the ones made by `environment.ensure`."""
    if options.comfyui is None:
        return environment.comfyui_dir(root), environment.ensure(root)
    comfyui = options.comfyui.resolve()
    if not (comfyui / "main.py").is_file():
        raise DemoError(f"{comfyui} has no main.py: --comfyui wants ComfyUI's own folder")
    usual = [environment.venv_python(comfyui / name) for name in (".venv", "venv")]
    usual.append(comfyui.parent / "python_embeded" / "python.exe")  # the portable Windows build
    return comfyui, options.python or next((path for path in usual if path.is_file()), Path(sys.executable))


def generate(server: Comfy, path: Path, options: argparse.Namespace) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    prompt = to_prompt(workflow, server.get("/object_info"))
    if options.seed is not None:
        for node in prompt.values():
            if "seed" in node["inputs"]:
                node["inputs"]["seed"] = options.seed
    print(f"running {path.name}", flush=True)
    for output in server.run(prompt).values():
        for picture in output.get("images", []):
            if picture["type"] == "output":
                print(options.output.resolve() / picture["subfolder"] / picture["filename"])


def leave_running(server: Comfy, root: Path) -> None:
    print(f"ComfyUI runs at {server.url} until Ctrl+C; drop a file of {root / 'workflows'} on the canvas", flush=True)
    webbrowser.open(server.url)
    server.process.wait()
