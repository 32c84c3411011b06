"""Makes the repository importable in tests, whatever its directory is called.

`jodi_core`, `training`, `scripts` are imported by name.  The node modules import `..jodi_core` relatively, as ComfyUI
loads them, so they are reached through `jodi_pack`, an alias of the root: `from jodi_pack.nodes import loader`.
"""

import os
import pathlib
import sys
import types

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMFYUI = pathlib.Path(os.environ.get("COMFYUI_DIR", ROOT / ".comfyui" / "ComfyUI"))

sys.path.insert(0, str(ROOT))
pack = types.ModuleType("jodi_pack")
pack.__path__ = [str(ROOT)]
sys.modules["jodi_pack"] = pack

if COMFYUI.is_dir():
    sys.path.insert(0, str(COMFYUI))  # before the root: a plain `nodes` is the host's
    import comfy.cli_args

    comfy.cli_args.args.cpu = True  # otherwise importing comfy.model_management fails on a CPU build of torch
