"""The server fixtures of tests/host, for long runs against it."""

import importlib.util
import sys
from pathlib import Path

HOST = Path(__file__).parent.parent / "host"
sys.path.insert(0, str(HOST))    # jodi_prompts
sys.path.insert(0, str(Path(__file__).parent))    # chains, hostile

spec = importlib.util.spec_from_file_location("host_fixtures", HOST / "conftest.py")
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
comfyui, server, object_info = fixtures.comfyui, fixtures.server, fixtures.object_info
