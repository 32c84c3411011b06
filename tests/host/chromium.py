"""A headless Chromium driven over its DevTools protocol: no Node, no browser driver."""

import asyncio
import base64
import shutil
import subprocess
import time
from pathlib import Path

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--window-size=1600,1000", "--remote-debugging-port=0",
         # Only the server under test is reachable.
         "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")


def find() -> str | None:
    """The path of an installed Chromium or Chrome."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """One page of a browser of its own: `async with Page(executable, profile_dir) as page`."""

    def __init__(self, executable: str, profile: Path):
        self.executable, self.profile = executable, profile
        self.last_id = 0

    async def __aenter__(self) -> "Page":
        self.process = subprocess.Popen([self.executable, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.http = aiohttp.ClientSession()
        port = await self.debugging_port()
        async with self.http.get(f"http://127.0.0.1:{port}/json/list") as answer:
            targets = await answer.json()
        address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
        self.socket = await self.http.ws_connect(address, max_msg_size=0)
        return self

    async def __aexit__(self, *_) -> None:
        await self.http.close()
        self.process.terminate()
        self.process.wait(20)

    async def debugging_port(self) -> str:
        """Chromium chooses a free port and writes it to a file in its profile."""
        file = self.profile / "DevToolsActivePort"
        for _ in range(300):
            if file.is_file() and file.read_text().count("\n"):
                return file.read_text().splitlines()[0]
            await asyncio.sleep(0.1)
        raise TimeoutError(f"{self.executable} did not open its DevTools port within 30 s")

    async def call(self, method: str, **parameters) -> dict:
        """The result of a DevTools command."""
        self.last_id += 1
        await self.socket.send_json({"id": self.last_id, "method": method, "params": parameters})
        while True:
            message = await self.socket.receive_json()
            if message.get("id") == self.last_id:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]

    async def evaluate(self, script: str):
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script[:200]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def wait_for(self, condition: str, seconds: float = 60) -> None:
        """Return once a JavaScript condition holds; errors while the page is still loading count as no."""
        script = f"(() => {{ try {{ return !!({condition}) }} catch (e) {{ return false }} }})()"
        deadline = time.monotonic() + seconds
        while not await self.evaluate(script):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds} s: {condition[:300]}")
            await asyncio.sleep(0.2)

    async def drop_file(self, file: Path, x: int, y: int) -> None:
        """Drag a file from outside over (x, y) and drop it there, as a file manager would."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    async def screenshot(self, file: Path) -> None:
        picture = await self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(picture["data"]))
