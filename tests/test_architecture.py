"""The house of docs/architecture.md: who may import whom, how large a file may grow, what an import costs."""

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("jodi_core", "nodes", "training", "benchmarks", "scripts")
SOURCES = sorted(path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TESTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py"))

HOST = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "node_helpers", "latent_preview",
        "server", "execution")
# Inside jodi_core: file -> what of jodi_core it may import. Later lines win.
JODI_CORE = {
    "*": (),
    "buckets.py": ("domains",), "role_sampling.py": ("domains",), "text.py": ("domains",),
    "pictures.py": ("segmentation", "fitting"),
    "metrics.py": ("segmentation",),
    "labels.py": ("pictures", "segmentation"), "geometry.py": ("pictures",),
    "models/*": ("domains", "models.*"),
    "jointnet/*": ("domains", "jointnet.*"), "jointnet/sampling.py": ("domains", "sampling", "tiles", "jointnet.*"),
    "jointnet/loading.py": ("files", "weights", "jointnet.*"), "jointnet/text.py": ("files",),
    "jointnet/pipeline.py": ("*",), "jointnet/programs.py": ("*",),
    "kl.py": ("files",),
    "autoencoders.py": ("files", "kl", "models.dcae", "weights"),
    "dual_diffusion/*": ("domains", "models.layers", "sampling", "pictures", "fitting", "dual_diffusion.*"),
    "dual_diffusion/weights.py": ("files", "weights", "dual_diffusion.*"), "dual_diffusion/pipeline.py": ("*",),
    "dual_diffusion/start.py": ("files", "weights"),
    "weights.py": ("files", "text", "models.*"),
    "convert.py": ("files", "weights", "jointnet.*", "dual_diffusion.*"),
    "published.py": ("files", "weights", "convert"),
    "verify*.py": ("*",),
    "pipeline.py": ("*",), "cli.py": ("*",), "conformance*.py": ("*",), "__main__.py": ("cli",), "__init__.py": ("*",),
}
LIGHT = {"transformers", "diffusers", "huggingface_hub", "sentencepiece", "PIL", "numpy", "torch"}


def imported(source: str) -> list[str]:
    """Full dotted names of the modules that a file imports, anywhere in it; for `from a import b`, a.b."""
    found, package = [], source.split("/")[:-1]
    for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) + 1 - node.level] if node.level else []
            stem = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found += [f"{stem}.{alias.name}" for alias in node.names]
    return found


def room(name: str) -> str:
    return name.split(".")[0]


def ours(room_name: str) -> list[str]:
    return [source for source in SOURCES if source.startswith(f"{room_name}/")]


@pytest.mark.parametrize("name, forbidden", [
    ("jodi_core", (*HOST, "nodes", "training", "benchmarks", "scripts")),
    ("nodes", ("training", "benchmarks", "scripts")),
    ("training", (*HOST, "nodes", "benchmarks", "scripts")),
    ("benchmarks", (*HOST, "nodes")),
    ("scripts", (*HOST, "jodi_core", "nodes", "training", "benchmarks", "torch", "numpy")),
])
def test_arrows_between_rooms(name, forbidden):
    wrong = [(source, module) for source in ours(name) for module in imported(source) if room(module) in forbidden]
    assert not wrong


def allowed_in_core(source: str) -> tuple[str, ...]:
    name = source.removeprefix("jodi_core/")
    return [allowed for pattern, allowed in JODI_CORE.items() if fnmatch(name, pattern)][-1]


def test_arrows_inside_the_core():
    files = {source.removeprefix("jodi_core/").removesuffix(".py").replace("/", ".") for source in ours("jodi_core")}
    wrong = []
    for source in ours("jodi_core"):
        for module in imported(source):
            if room(module) == "jodi_core":
                target = module.removeprefix("jodi_core.")
                target = target if target in files else target.rpartition(".")[0]
                if not any(fnmatch(target, pattern) for pattern in allowed_in_core(source)):
                    wrong.append((source, module))
    assert not wrong


def test_nobody_imports_the_pipeline_but_the_entry_points():
    """From outside it is reached as `jodi_core.JodiPipeline`."""
    importers = {source for source in SOURCES if any(".pipeline" in module for module in imported(source))}
    assert importers <= {"jodi_core/cli.py", "jodi_core/conformance_models.py", "jodi_core/conformance_jointnet.py",
                         "jodi_core/jointnet/programs.py"}


def test_modules_of_tests_have_names_of_their_own():
    """Folders of tests are no packages: the second of two modules with one name is not run."""
    names = [Path(source).name for source in TESTS if not source.endswith("conftest.py")]
    assert sorted(set(names)) == sorted(names)


def test_nobody_puts_the_root_first():
    """The host's `nodes` must be found before the folder of that name."""
    first = re.compile(r"sys\.path\.insert\(0, str\((ROOT|Path\(__file__\)\.resolve\(\)\.parents)")
    inserting = [source for source in SOURCES + TESTS if source != "tests/conftest.py"]    # which knows about it
    assert not [source for source in inserting if first.search((ROOT / source).read_text(encoding="utf-8"))]


def test_nodes_touch_the_host_s_internals_in_one_place():
    """Elsewhere only what the host promises to node packs."""
    wrong = [(source, module) for source in ours("nodes") if not source.startswith("nodes/host/")
             for module in imported(source) if room(module) in ("comfy", "latent_preview")]
    assert not wrong


@pytest.mark.parametrize("name", ["jodi_core", "nodes"])
def test_what_the_host_loads_names_itself_relatively(name):
    """The host loads the pack under the name of its folder."""
    for source in ours(name):
        for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(room(alias.name) in ROOMS for alias in node.names), source
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert room(node.module) not in ROOMS, source


def test_files_and_functions_stay_readable():
    too_long = []
    for source in [*SOURCES, *TESTS, "run.py", "__init__.py"]:
        text = (ROOT / source).read_text(encoding="utf-8")
        if len(text.splitlines()) >= 400:
            too_long.append(source)
        too_long += [f"{source}: {node.name}" for node in ast.walk(ast.parse(text))
                     if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
                     and node.end_lineno - node.lineno + 1 >= 60]
    assert not too_long


@pytest.mark.parametrize("statement, heavy", [
    ("import jodi_core", LIGHT),
    ("import pack", LIGHT),
    # What the nodes import, beside torch and pictures, which the host has loaded long before.
    ("import jodi_core.models.jodi, jodi_core.models.dcae, jodi_core.sampling, jodi_core.domains, jodi_core.weights, "
     "jodi_core.jointnet.network, jodi_core.dual_diffusion.network, jodi_core.dual_diffusion.words, "
     "jodi_core.dual_diffusion.text_sampling, jodi_core.dual_diffusion.losses, jodi_core.dual_diffusion.pictures",
     {"transformers", "diffusers", "huggingface_hub", "sentencepiece"}),
])
def test_an_import_brings_nothing_heavy(statement, heavy, tmp_path):
    (tmp_path / "pack.py").write_bytes((ROOT / "__init__.py").read_bytes())
    program = f"import sys; sys.path[:0] = {[str(ROOT), str(tmp_path)]!r}; {statement}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & set(loaded)
