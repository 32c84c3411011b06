"""First contact: the bundled files pass, and every kind of damage fails in the row that is about it."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jodi_core import cli
from jodi_core.files import Header, WeightsError
from jodi_core.models.jodi import JodiConfig
from jodi_core.verify import FAIL, OK, SKIPPED, Part, verify
from jodi_core.verify_rows import _tensors
from jodi_core.weights import tiny_bundle

CAPTION = "y_embedder.y_embedding"
PUBLISHED_KEYS = Path(__file__).parents[1] / "golden" / "jodi_published_keys.json"


def damaged(tmp_path, kind: str, change) -> Path:
    """A copy of a bundled file with its tensors changed, metadata as they are."""
    tensors = load_file(tiny_bundle()[kind])
    change(tensors)
    with safe_open(tiny_bundle()[kind], "pt") as file:
        save_file(tensors, tmp_path / f"{kind}.safetensors", file.metadata())
    return tmp_path / f"{kind}.safetensors"


def verdicts(*paths) -> dict[str, str]:
    return {row.check: row.verdict for row in verify(paths)}


def failing(*paths) -> set[str]:
    return {check for check, verdict in verdicts(*paths).items() if verdict == FAIL}


def test_the_bundled_files_pass_and_what_does_not_apply_is_told():
    rows = verify(["tiny"])
    assert not [row for row in rows if row.verdict == FAIL]
    by_check = {row.check: row for row in rows}
    for check in ("transformer: stored caption with the text encoder", "transformer: answer to noise",
                  "autoencoder: a drawn picture there and back", "transformer: stored caption",
                  "text_encoder: features of a prompt", "transformer: latents with the autoencoder"):
        assert by_check[check].verdict == OK
    for check in ("transformer: published size", "text_encoder: Gemma-2-2b", "text_encoder: prefix"):
        assert by_check[check].verdict == SKIPPED and "does not apply" in by_check[check].found


def remove(name):
    return lambda tensors: tensors.pop(name)


def put(name, value, where=0):
    def change(tensors):
        tensors[name].view(-1)[where] = value
    return change


def replace(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


def swap_rows(tensors):
    tensors[CAPTION] = tensors[CAPTION][[1, 0, *range(2, len(tensors[CAPTION]))]]


def equal_domains(tensors):
    tensors["x_embedders.3.proj.weight"] = tensors["x_embedders.1.proj.weight"].clone()


@pytest.mark.parametrize("kind, change, expected", [
    ("transformer", remove("blocks.1.mlp.point_conv.conv.weight"), {"tensor names"}),
    ("transformer", remove(CAPTION), {"tensor names", "configuration"}),
    ("transformer", replace("blocks.0.extra", torch.zeros(2)), {"tensor names"}),
    ("transformer", replace("blocks.2.attn.proj.bias", torch.zeros(3)), {"tensor shapes"}),
    ("transformer", put("blocks.2.attn.proj.weight", torch.nan), {"values"}),
    ("transformer", put("final_layers.7.linear.bias", -torch.inf), {"values"}),
    ("transformer", replace("t_block.1.bias", torch.zeros(960, dtype=torch.int32)), {"number types"}),
    ("transformer", swap_rows, {"stored caption", "stored caption with the text encoder"}),
    ("transformer", equal_domains, {"domains", "answer to noise"}),
    ("autoencoder", put("decoder.project_out.op_list.2.conv.weight", torch.nan), {"values"}),
    ("autoencoder", lambda tensors: tensors["decoder.project_in.main.conv.weight"].zero_(),
     {"a drawn picture there and back"}),
    ("text_encoder", remove("spiece_model"), {"tokenizer"}),
    ("text_encoder", remove("model.layers.0.mlp.up_proj.weight"), {"tensor names"}),
    ("text_encoder", lambda tensors: tensors["model.norm.weight"].add_(1), {"stored caption with the text encoder"}),
])
def test_damage_fails_in_its_own_row(tmp_path, kind, change, expected):
    files = tiny_bundle() | {kind: damaged(tmp_path, kind, change)}
    found = {check.partition(": ")[2] for check in failing(*files.values())}
    assert expected <= found and found - expected <= {"answer to noise"}


def test_a_file_alone_leaves_out_what_needs_two(tmp_path):
    told = verdicts(tiny_bundle()["transformer"])
    assert told["transformer: stored caption with the text encoder"] == SKIPPED
    assert told["transformer: latents with the autoencoder"] == SKIPPED and FAIL not in told.values()


def test_torch_files_tell_their_layout_and_hostile_ones_fail(tmp_path):
    tensors = load_file(tiny_bundle()["transformer"])
    torch.save({"state_dict": tensors | {"pos_embed": torch.zeros(1)}, "epoch": 3}, tmp_path / "x.pth")
    rows = {row.check: row for row in verify([tmp_path / "x.pth"])}
    assert rows["file: layout"].found == "under 'state_dict', beside epoch"
    assert rows["transformer: values"].verdict == OK
    torch.save({"state_dict": {"a": Path("x")}}, tmp_path / "y.pth")
    (tmp_path / "z.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:100_000])
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Path("x")))
    for name in "yzw":
        row, = (row for row in verify([tmp_path / f"{name}.pth"]) if row.verdict == FAIL)
        assert row.check == "file: can be read" and ("was refused" in row.found or "cut short" in row.found)


def test_a_file_of_another_model_fails(tmp_path):
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    row, = (row for row in verify([tmp_path / "x.safetensors"]) if row.verdict == FAIL)
    assert row.check == "file: kind" and "Flux" in row.found


def test_the_published_list_of_tensors_is_known(tmp_path):
    shapes = {name: tuple(shape) for name, shape in json.loads(PUBLISHED_KEYS.read_text())["shapes"].items()}
    header = Header(tmp_path / "Jodi.pth", shapes, dict.fromkeys(shapes, "F32"), {})
    part = Part(header.path, "transformer", header, {name: name for name in shapes}, JodiConfig.from_state_dict(shapes))
    assert [row.verdict for row in _tensors(part)] == [OK, OK, OK]
    assert "1636348416 parameters" in _tensors(part)[2].found


def test_the_command_prints_a_table_writes_json_and_fails_by_its_status(tmp_path, capsys):
    assert cli.main(["verify", "tiny", "--json", str(tmp_path / "report.json")]) == 0
    assert "0 FAIL" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"file", "check", "expected", "found", "verdict"} == report["rows"][0].keys()
    path = damaged(tmp_path, "autoencoder", put("encoder.project_in.conv.bias", torch.nan))
    assert cli.main(["verify", str(path)]) == 1
    assert "FAIL        autoencoder: values" in capsys.readouterr().out
    assert cli.main(["verify", str(tmp_path / "absent.pth")]) == 2
    with pytest.raises(WeightsError, match="convert"):
        (tmp_path / "gemma").mkdir()
        verify([tmp_path / "gemma"])
