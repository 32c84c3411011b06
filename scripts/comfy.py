"""Runs a real ComfyUI with this pack and talks to it over HTTP. Standard library only; for the demo and the tests."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

# What an installed pack consists of; the host gets a copy, so nothing else can be relied upon by accident.
PACK = ("__init__.py", "pyproject.toml", "jodi_core", "nodes", "web", "locales", "workflows", "subgraphs")
PACK_DIR = "comfyui-jodi"
START_SECONDS = 180


class ComfyError(Exception):
    """ComfyUI did not start, refused a prompt or failed in it; `details` holds its answer where there is one."""

    def __init__(self, message: str, details: dict | None = None):
        super().__init__(message)
        self.details = details or {}


class Comfy:
    """A ComfyUI server in a base directory of its own (models, input, output, user), with the pack in `root` installed.

    It runs inside a `with` statement.  comfyui: the folder with main.py.  python: what runs it.  The log is
    `comfyui.log` in the base directory.
    """

    def __init__(self, comfyui: Path, python: Path, base: Path, root: Path, *arguments: str):
        self.base, self.log, self.root = base, base / "comfyui.log", root
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [str(python), str(comfyui / "main.py"), "--listen", "127.0.0.1", "--port", str(self.port),
                        "--base-directory", str(base), "--database-url", "sqlite:///:memory:",
                        "--disable-auto-launch", "--disable-api-nodes", *arguments]

    def __enter__(self) -> "Comfy":
        """Install the pack and return once the server answers; ComfyError if it does not within `START_SECONDS`."""
        install_pack(self.root, self.base / "custom_nodes" / PACK_DIR)
        # Waiting threads would otherwise spin and slow the others down where cores are few.
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONIOENCODING": "utf-8"}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(self.command, cwd=self.base, env=environment, stdout=log,
                                            stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_SECONDS
        while not self.alive():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ComfyError(f"ComfyUI did not start; the end of {self.log}:\n" + self.log_text()[-2000:])
            time.sleep(0.2)
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def alive(self) -> bool:
        try:
            return "system" in self.get("/system_stats")
        except (OSError, ValueError):
            return False

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def fetch(self, path: str, **query: str) -> bytes:
        address = self.url + urllib.parse.quote(path)
        with urllib.request.urlopen(address + ("?" + urllib.parse.urlencode(query) if query else ""), timeout=60) as r:
            return r.read()

    def get(self, path: str) -> dict:
        return json.loads(self.fetch(path))

    def post(self, path: str, content: dict) -> dict:
        """The answer to a JSON POST; ComfyError with the server's explanation if it says no."""
        request = urllib.request.Request(self.url + path, json.dumps(content).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            details = json.loads(error.read())
            raise ComfyError(f"ComfyUI refused {path}: {json.dumps(details)[:2000]}", details) from None

    def queue(self, prompt: dict) -> str:
        """Queue a prompt in the server's format and return its id; ComfyError if the server finds it invalid."""
        return self.post("/prompt", {"prompt": prompt})["prompt_id"]

    def wait(self, prompt_id: str, patience: float = 600) -> dict:
        """The history entry of a finished prompt, whether it succeeded, failed or was interrupted."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            if self.process.poll() is not None:
                raise ComfyError("ComfyUI died; the end of its log:\n" + self.log_text()[-2000:])
            time.sleep(0.1)
        raise ComfyError(f"prompt {prompt_id} took longer than {patience} s")

    def run(self, prompt: dict) -> dict:
        """Run a prompt to its end: {node id: its outputs}; ComfyError with the node's message if it fails."""
        entry = self.wait(self.queue(prompt))
        if entry["status"]["status_str"] != "success":
            failure = dict(entry["status"]["messages"]).get("execution_error", {})
            raise ComfyError(f"{failure.get('node_type')}: {failure.get('exception_message')}", failure)
        return entry["outputs"]

    def pictures(self, outputs: dict) -> dict[str, list[bytes]]:
        """PNG files of the nodes that saved or previewed pictures, by node id."""
        keys = ("filename", "subfolder", "type")
        return {node: [self.fetch("/view", **{key: picture[key] for key in keys}) for picture in output["images"]]
                for node, output in outputs.items() if "images" in output}


def install_pack(root: Path, target: Path) -> None:
    """Copy the pack (a link would need rights that Windows users lack)."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in PACK:
        if (root / name).is_dir():
            shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / name, target / name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
