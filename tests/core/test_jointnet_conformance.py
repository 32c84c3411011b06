"""The recorded numbers of JointNet's original pass, and changed ones are noticed."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
from jodi_core.conformance import main  # noqa: E402

GOLDEN = Path(__file__).parent.parent / "golden" / "jointnet"


@pytest.fixture(scope="module")
def recording():
    return json.loads((GOLDEN / "jointnet_tiny.json").read_text()), load_file(GOLDEN / "jointnet_tiny.safetensors")


def part(folder: Path, recording, cases: list[str], change=lambda values, tensors: None) -> Path:
    """A folder with some of the cases, under another name."""
    values, tensors = recording
    values = values | {"cases": {name: values["cases"][name] for name in cases}, "tile_grids": values["tile_grids"][:2]}
    values = json.loads(json.dumps(values))
    tensors = {name: tensor for name, tensor in tensors.items()
               if not name.startswith("case/") or name.split("/")[1] in cases}
    change(values, tensors)
    save_file(tensors, folder / "jointnet_other.safetensors")
    (folder / "jointnet_other.json").write_text(json.dumps(values))
    return folder


def test_golden_data_passes(capsys):
    assert main([str(GOLDEN)]) == 0
    shown = capsys.readouterr().out
    assert "FAILED" not in shown and "180 of 180 agree" in shown


@pytest.mark.parametrize("case, name", [
    ("forward_inpaint", "rgb/eps"), ("forward_inpaint", "joint/temb"), ("forward_base", "rgb/outgoing_residual_mid"),
    ("rgb2j", "latents_after_step"), ("rgb2j", "image"), ("rgb2j", "initial_latents"), ("mesh_scaled", "vertices"),
])
def test_a_changed_number_is_noticed(tmp_path, capsys, recording, case, name):
    def change(values, tensors):
        changed = tensors[f"case/{case}/{name}"].clone()
        changed.view(-1)[1] += 1e-3 * changed.abs().max()
        tensors[f"case/{case}/{name}"] = changed

    assert main([str(part(tmp_path, recording, [case], change))]) == 1
    rows = [row for row in capsys.readouterr().out.splitlines() if "FAILED" in row]
    assert len(rows) == 1


@pytest.mark.parametrize("change", [
    lambda values, tensors: values["cases"]["rgb2j"]["args"].update(guidance_scale=7.4),
    lambda values, tensors: values["cases"]["rgb2j"].update(variant="base"),
    lambda values, tensors: values["unet_config"].update(norm_eps=1e-6),
    lambda values, tensors: values["strength_to_timesteps"][3].update(evaluations=28),
    lambda values, tensors: values["tile_grids"][0]["views"][3].reverse(),
    lambda values, tensors: values["scheduler"]["alphas_cumprod"].update({"481": 0.31}),
    lambda values, tensors: values["cases"].update(unheard_of=values["cases"].pop("rgb2j")),
])
def test_a_changed_description_is_noticed(tmp_path, recording, change):
    assert main([str(part(tmp_path, recording, ["rgb2j"], change))]) == 1
