"""check-data: every fault is found, with its file; a whole folder has none; what report and sheet hold."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import cli
from training.check_data import check, evenly
from training.config import EvaluationConfig, SetConfig, StartConfig
from training.pack import pack

from toy_folder import SCENES, change, config_of, cut, entry, file, paint, pixels, problems


# ---- nothing wrong ----------------------------------------------------------------------------------------------

def test_a_whole_folder_has_no_faults(toy_set):
    report = check(config_of(toy_set), workers=2)
    assert report.problems == []
    told = report.summary()
    assert told["sets"] == {str(toy_set): {"samples": SCENES, "repeat": 1, "looked_at": SCENES}}
    assert told["bins"] == {"64x64": {"samples": SCENES, "cropped_mean": 0, "cropped_most": 0, "upscaled": 0}}
    images = np.stack([pixels(file(toy_set, line, "image")) for line in range(SCENES)]) / 255
    image = told["domains"]["image"]
    assert image["present"] == SCENES and image["mean"] == pytest.approx(images.mean(), abs=1e-3)
    assert image["std"] == pytest.approx(images.std(), abs=1e-3)
    assert told["domains"]["edge"]["lines"] == {"light on dark": SCENES}
    nobody = sum(pixels(file(toy_set, line, "openpose")).max() == 0 for line in range(SCENES))
    assert told["domains"]["openpose"]["empty"] == nobody
    words = sorted(len(entry(toy_set, line)["caption"]["toy"].split()) for line in range(SCENES))
    captions, = told["captions"]
    assert (captions["words_least"], captions["words_most"]) == (words[0], words[-1])


# ---- metadata -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("values, kind, fault", [
    ({"image": None}, "no image", True), ({"image": 7}, "unusable entry", True),
    ({"caption": None}, "no caption", True), ({"caption": {}}, "no caption", True),
    ({"caption": "a house"}, "unusable entry", True), ({"caption": {"toy": 3}}, "unusable caption", True),
    ({"caption": {"toy": " "}}, "empty caption", False),
    ({"caption": {"toy": "a house --ar 1:1"}}, "cut caption", False),
    ({"caption": {"toy": "tree " * 59}}, None, False), ({"caption": {"toy": "tree " * 60}}, "long caption", False),
    ({"caption": {"toy": "一座红色的房子。" * 8}}, "long caption", False),
])
def test_a_bad_line_is_named(folder, values, kind, fault):
    change(folder, 4, **values)
    found = check(config_of(folder)).problems
    assert [problem.kind for problem in found] == [kind] * (kind is not None)
    for problem in found:
        assert problem.fault == fault and (problem.line, problem.set) == (5, str(folder))


def test_a_size_that_is_not_the_pictures(folder):
    change(folder, 1, info={"height": 60, "width": 100})
    kinds = {problem.kind: problem for problem in check(config_of(folder)).problems}
    assert kinds["other size"].message == ("it has 64x64 pixels, but info says 100x60: it is brought to 80x48 and not "
                                           "to 64x64")
    assert "the bin of 80x48: 1, fewer than the 4 of a batch" in kinds["small bin"].message and len(kinds) == 2


def test_turned_pictures_are_taken_upright(folder):
    path = file(folder, 0, "image")
    turned = Image.Exif()
    turned[0x0112] = 6
    paint(path, pixels(path)[:, :48], exif=turned)
    assert "it has 64x48 pixels" in check(config_of(folder)).problems[0].message


def test_shares_that_are_cut_away_and_enlarged_samples(folder):
    change(folder, 0, info={"height": 64, "width": 128})    # to 48x80: 48x96 before the cut
    change(folder, 1, info={"height": 30, "width": 50})
    config = config_of(folder, batch=2, micro_batch=2)
    repeated = replace(config.data, sets=(replace(config.data.sets[0], repeat=3),))
    assert check(replace(config, data=repeated)).summary()["bins"] == {
        "48x80": {"samples": 6, "cropped_mean": round(1 / 12, 4), "cropped_most": round(1 / 6, 4), "upscaled": 3},
        "64x64": {"samples": 12, "cropped_mean": 0, "cropped_most": 0, "upscaled": 0}}


def test_the_same_caption_twice(folder):
    for line in (1, 3, 4):
        change(folder, line, caption={"toy": "a house", "other": "a house"})
    report = check(config_of(folder))
    problem, = report.problems
    assert "3 samples have the caption 'a house': line 2, line 4, line 5" == problem.message and not problem.fault


def test_a_weight_for_captions_that_nobody_wrote(folder):
    sets = (SetConfig(path=str(folder), captions={"toy": 1, "qwen": 2}),)
    problem, = check(config_of(data={"sets": sets})).problems
    assert problem.kind == "no such caption" and "captions.qwen" in problem.message and "toy" in problem.message


# ---- labels that are not there --------------------------------------------------------------------------------------

def without_labels(folder: Path, line: int, keep: tuple[str, ...] = ()) -> None:
    labels = {key for key in entry(folder, line) if key.startswith("annotation_")}
    change(folder, line, **dict.fromkeys(labels - set(keep)))


def test_absent_labels_are_counted(folder):
    change(folder, 0, annotation_depth=None)
    report = check(config_of(folder))
    depth = report.domains["depth"]
    assert report.problems == [] and (depth.present, depth.absent) == (SCENES - 1, 1)


def test_no_labels_at_all(folder):
    without_labels(folder, 3)
    assert check(config_of(folder)).problems == []    # "nobody" is a label
    empty = {"sets": (SetConfig(path=str(folder)),), "empty_pose": False}
    assert problems(check(config_of(data=empty))) == [("no labels", "", 4, "metadata.jsonl")]
    assert check(config_of(data=empty, tasks=("joint",))).problems == []


def test_no_label_that_all_have(folder):
    for line in range(SCENES):
        without_labels(folder, line, keep=("annotation_depth" if line % 2 else "annotation_edge",))
    sets = {"sets": (SetConfig(path=str(folder)),), "empty_pose": False}
    assert check(config_of(data=sets)).problems == []
    evaluation = EvaluationConfig(every=1, sets=sets["sets"])
    for changes, advice in (({"in_turn": True}, "in_turn = false"), ({"evaluation": evaluation}, "micro_batch = 1")):
        problem, = check(config_of(data=sets, **changes)).problems
        assert problem.kind == "no common label" and problem.fault and advice in problem.message
        assert check(config_of(data=sets, micro_batch=1, **changes)).problems == []


def test_nobody_anywhere(folder):
    for line in range(SCENES):
        paint(file(folder, line, "openpose"), np.zeros((64, 64, 3), np.uint8))
    problem, = check(config_of(folder)).problems
    assert problem.kind == "nobody" and not problem.fault


# ---- sets ---------------------------------------------------------------------------------------------------------

def test_a_set_that_cannot_be_opened_does_not_hide_the_others(folder, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    (bad / "metadata.jsonl").write_text("\n".join([*lines[:2], lines[2][:40]]))
    file(folder, 0, "edge").unlink()
    report = check(config_of(tmp_path / "nowhere", bad, folder))
    assert [(problem.set, problem.kind, problem.line) for problem in report.faults] == [
        (str(tmp_path / "nowhere"), "cannot be opened", None), (str(bad), "cannot be opened", 3),
        (str(folder), "missing file", 1)]
    assert report.summary()["sets"][str(folder)]["looked_at"] == SCENES
    assert [problem.kind for problem in check(config_of()).faults] == ["no data"]


def test_a_part_is_spread_over_all_sets(toy_set):
    assert evenly(9, 3) == [0, 4, 8] and evenly(2, 5) == [0, 1] and evenly(5, 1) == [0] and evenly(0, 3) == []
    report = check(config_of(toy_set, toy_set), count=4, workers=2)
    assert [row["looked_at"] for row in report.sets.values()] == [2, 2]
    assert [row["samples"] for row in report.sets.values()] == [SCENES, SCENES]
    rows = [title.split(":")[0] for title, _ in report.tiles[::8]]
    assert rows == ["set 1, line 1", "set 1, line 6", "set 2, line 1", "set 2, line 6"]


def test_evaluation_sets_are_looked_at_and_are_in_no_bin(toy_set):
    evaluation = EvaluationConfig(every=1, sets=(SetConfig(path=str(toy_set)),))
    report = check(config_of(toy_set, evaluation=evaluation))
    assert [row["looked_at"] for row in report.sets.values()] == [SCENES, SCENES]
    assert f"{toy_set}, evaluation" in report.sets and report.bins[64, 64].samples == SCENES


def test_shards(folder, tmp_path):
    paint(file(folder, 1, "albedo"), np.full((64, 64, 3), 7, np.uint8))
    pack(str(folder), tmp_path / "shards", per_shard=3)
    first, second = sorted((tmp_path / "shards").glob("*.tar"))
    whole = check(config_of(tmp_path / "shards/shard-{000000..000001}.tar"))
    constant, = whole.problems
    assert constant.kind == "constant" and constant.sample in constant.file and first.name in constant.file
    content = second.read_bytes()
    second.write_bytes(content[:len(content) // 2])
    damaged = check(config_of(tmp_path / "shards/shard-{000000..000001}.tar", batch=2, micro_batch=2))
    fault, = damaged.faults
    assert fault.kind == "damaged shard" and fault.file == str(second)
    assert 3 <= sum(row["looked_at"] for row in damaged.sets.values()) < SCENES


# ---- the command --------------------------------------------------------------------------------------------------

def write_config(folder: Path, path: Path) -> str:
    path.write_text(f'output = "{path.parent}/run"\nbatch = 4\n[start]\nkind = "nothing"\n[speed]\ndevice = "cpu"\n'
                    f'[model.bins]\n"1.0" = [64, 64]\n[[data.sets]]\npath = "{folder}"\n')
    return str(path)


def test_the_command_and_what_it_writes(folder, tmp_path, capsys):
    config = write_config(folder, tmp_path / "run.toml")
    assert cli.main(["check-data", config]) == 0
    told = capsys.readouterr().out
    assert f"{SCENES} samples looked at: 0 faults, 0 warnings" in told and "64x64" in told
    assert json.loads((tmp_path / "run/check_data/report.json").read_text())["faults"] == []
    cut(file(folder, 1, "normal"), 0.5)
    paint(file(folder, 0, "albedo"), np.full((64, 64, 3), 7, np.uint8))
    there = ["--report", str(tmp_path / "there"), "--rows", "2", "steps=3"]
    assert cli.main(["check-data", config, "--sample", "3", *there]) == 0, "line 2 is not among the three"
    assert cli.main(["check-data", config, *there]) == 1
    assert str(file(folder, 1, "normal")) in capsys.readouterr().out
    report = json.loads((tmp_path / "there/report.json").read_text())
    fault, = report["faults"]
    assert (fault["set"], fault["line"], fault["kind"]) == (str(folder), 2, "corrupt picture")
    assert fault["file"] == str(file(folder, 1, "normal")) and "truncated" in fault["message"]
    assert [warning["kind"] for warning in report["warnings"]] == ["constant"]


def test_words_that_are_no_override_are_refused(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["check-data", write_config(folder, tmp_path / "run.toml"), "--sample", "2", "steps=2", "--sampel"])
    assert "unrecognized arguments: steps=2 --sampel" in capsys.readouterr().err


def test_the_sheet_shows_each_picture_in_its_row_and_column(folder):
    file(folder, 2, "edge").unlink()
    change(folder, 2, annotation_depth=None)
    report = check(config_of(folder), rows=SCENES)
    tiles = [report.tiles[place:place + 8] for place in range(0, len(report.tiles), 8)]
    assert len(tiles) == SCENES
    for line in (0, 5):
        title, tile = tiles[line][4]
        assert title == "normal" and tile.size == (192, 192)
        small = np.asarray(tile.resize((64, 64))).astype(int)
        assert np.abs(small - pixels(file(folder, line, "normal"))).mean() < 6
    assert [title for title, _ in tiles[2]][:4] == ["line 3: image", "lineart", "edge: missing file", "depth: absent"]
    assert tiles[2][2][1].getextrema() == ((70, 70),) * 3


def test_the_published_model_is_not_fetched(toy_set, monkeypatch):
    monkeypatch.setattr("jodi_core.files._fetch", lambda *arguments, **where: pytest.fail("a download"))
    report = check(config_of(toy_set, start=StartConfig()), count=1)
    assert report.faults == [] and report.bins[1024, 1024].upscaled == SCENES


def test_toy_scenes_need_no_check(tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text("[toy]\nscenes = 8\n")
    assert cli.main(["check-data", str(path)]) == 0 and "no data to check" in capsys.readouterr().out
