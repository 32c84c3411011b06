"""A running ComfyUI over HTTP: pictures in, prompts in the server's format, pictures out."""

import io
import json
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_BOUNDARY = "picture-of-a-scene"


@dataclass(frozen=True)
class Server:
    url: str

    def fetch(self, path: str, content: bytes | None = None, kind: str = "application/json") -> bytes:
        """The answer to a GET, or with content to a POST; urllib's exceptions."""
        with urllib.request.urlopen(urllib.request.Request(self.url + path, content, {"Content-Type": kind}),
                                    timeout=60) as answer:
            return answer.read()

    def upload(self, name: str, picture_3HW: Tensor) -> str:
        """A uint8 picture into the server's input folder; its name there."""
        png = io.BytesIO()
        Image.fromarray(picture_3HW.movedim(0, -1).numpy()).save(png, "PNG")
        head = ('Content-Disposition: form-data; name="overwrite"\r\n\r\ntrue',
                f'Content-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n')
        body = b"".join([f"--{_BOUNDARY}\r\n{head[0]}\r\n--{_BOUNDARY}\r\n{head[1]}".encode(), png.getvalue(),
                         f"\r\n--{_BOUNDARY}--\r\n".encode()])
        return json.loads(self.fetch("/upload/image", body, f"multipart/form-data; boundary={_BOUNDARY}"))["name"]

    def run(self, prompt: dict) -> tuple[dict[str, dict], float]:
        """Outputs of a prompt by node id, and the seconds that the server says it took. RuntimeError if it fails."""
        queued = json.loads(self.fetch("/prompt", json.dumps({"prompt": prompt}).encode()))["prompt_id"]
        while not (entry := json.loads(self.fetch(f"/history/{queued}"))):
            time.sleep(0.02)
        events = dict(entry[queued]["status"]["messages"])
        if "execution_success" not in events:
            raise RuntimeError(f"{self.url} could not run a prompt: {events}")
        seconds = (events["execution_success"]["timestamp"] - events["execution_start"]["timestamp"]) / 1000
        return entry[queued]["outputs"], seconds

    def pictures(self, outputs: dict[str, dict]) -> dict[str, Tensor]:
        """The first picture of each node that saved or previewed one, (3, H, W) uint8."""
        return {node: self._picture(output["images"][0]) for node, output in outputs.items() if "images" in output}

    def _picture(self, where: dict) -> Tensor:
        query = urllib.parse.urlencode({key: where[key] for key in ("filename", "subfolder", "type")})
        picture = Image.open(io.BytesIO(self.fetch(f"/view?{query}"))).convert("RGB")
        return torch.from_numpy(np.array(picture)).movedim(-1, 0)
