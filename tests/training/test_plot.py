"""The curves of runs as a picture."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image, ImageColor

from training import cli, plot
from training.chart import COLOURS, PANEL, Curve, Panel, legend_rows, number, round_ticks, text_width, value_axis


def write(folder: Path, steps: int, scale: float = 1.0, **more) -> Path:
    folder.mkdir(parents=True)
    with open(folder / "log.jsonl", "w") as log:
        for step in range(10, steps + 1, 10):
            loss = scale * (1 + math.exp(-step / 100))
            log.write(json.dumps({"step": step, "loss": loss, "perceive": loss, "joint": 2 * loss, "domain/edge": loss,
                                  "domain/image": loss, "time/0-250": loss, "lr": 1e-4, "norm": 1 / step, "skipped": 0,
                                  "samples_per_s": 40.0, "memory_gb": 2.5} | more) + "\n")
        log.write(json.dumps({"step": steps, "eval/loss": 0.3, "eval/joint": 0.4, "eval/metric/depth_mae": 0.1}) + "\n")
    return folder


def colours(image: Image.Image) -> set:
    return {colour for _, colour in image.getcolors(image.width * image.height)}


def test_one_run_has_a_panel_per_kind(tmp_path):
    panels = plot.panels_of_one(plot.series(write(tmp_path / "run", 500)))
    assert [panel.title for panel in panels] == [
        "Loss", "Loss per task", "Loss per domain", "Loss per time band", "Learning rate", "Gradient norm",
        "Samples per second", "Memory (GB)", "Evaluation: loss", "Evaluation: loss per task", "Evaluation: depth_mae"]
    assert [curve.label for curve in panels[1].curves] == ["joint", "perceive"]
    assert [curve.label for curve in panels[2].curves] == ["image", "edge"]


def test_several_runs_share_panels_and_differ_in_colour(tmp_path):
    runs = [write(tmp_path / "one", 500), write(tmp_path / "two", 300, 2.0, skipped=1)]
    panels = {panel.title: panel for panel in plot.panels_of_many(list(map(plot.series, runs)))}
    assert [curve.colour for curve in panels["Loss per domain: edge"].curves] == list(COLOURS[:2])
    assert [curve.values[0] for curve in panels["Skipped samples"].curves] == [0, 1], "both, since one skipped any"
    image = plot.plot(runs)
    assert {ImageColor.getrgb(colour) for colour in COLOURS[:2]} <= colours(image)
    assert image.width > 3 * PANEL[0]


def test_the_command_writes_a_picture(tmp_path, capsys):
    run = write(tmp_path / "run", 200)
    cli.main(["plot", str(run)])
    assert Image.open(run / "curves.png").height > 4 * PANEL[1]
    cli.main(["plot", str(run), str(write(tmp_path / "other" / "run", 100)), "--output", str(tmp_path / "both.png")])
    assert Image.open(tmp_path / "both.png").format == "PNG"
    assert capsys.readouterr().out.splitlines() == [str(run / "curves.png"), str(tmp_path / "both.png")]


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    assert plot.names_of([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == [str(tmp_path / "a" / "run"),
                                                                              str(tmp_path / "b" / "run")]
    assert plot.names_of([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]


def test_a_single_line_and_values_that_are_no_numbers(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 0, "loss": 0.3, "norm": NaN}\n')
    assert plot.series(tmp_path) == {"loss": ([0], [0.3])}
    assert ImageColor.getrgb(COLOURS[0]) in colours(plot.plot([tmp_path])), "a dot"


def test_a_folder_without_a_log_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="log.jsonl: no such file; RUN is the output folder"):
        plot.plot([tmp_path])
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no values yet"):
        plot.plot([tmp_path])


@pytest.mark.parametrize("low, high, ticks", [
    (0, 12_000, ["0", "2k", "4k", "6k", "8k", "10k", "12k"]), (0.17, 0.43, ["0.2", "0.25", "0.3", "0.35", "0.4"]),
    (0, 1.04e-4, ["0", "2e-5", "4e-5", "6e-5", "8e-5", "1e-4"]), (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
    (-3, 3, ["-3", "-2", "-1", "0", "1", "2", "3"]), (1e6, 1.5e6, ["1M", "1.1M", "1.2M", "1.3M", "1.4M", "1.5M"])])
def test_ticks_are_round(low, high, ticks):
    assert [number(tick) for tick in round_ticks(low, high, 7)] == ticks


def test_axes_hold_what_they_show():
    wide = value_axis(Panel("", [Curve("", [0, 1], [0.01, 5.0], COLOURS[0])]))
    assert wide.logarithmic and [number(tick) for tick in wide.ticks][:4] == ["0.01", "0.02", "0.05", "0.1"]
    assert wide.place(wide.low) == pytest.approx(0) and wide.place(wide.high) == pytest.approx(1)
    flat = value_axis(Panel("", [Curve("", [0, 1], [0.5, 0.5], COLOURS[0])]))
    assert flat.low < 0.5 < flat.high and len(flat.ticks) > 2
    from_zero = value_axis(Panel("", [Curve("", [0], [40.0], COLOURS[0])], zero=True))
    assert from_zero.low == 0 and not from_zero.logarithmic
    spike = [1.0 + step / 500 for step in range(500)]
    assert value_axis(Panel("", [Curve("", list(range(500)), spike, COLOURS[0], [*spike[:-1], 900.0])])).high < 3


def test_legends_wrap_before_they_are_too_wide():
    rows = legend_rows([(f"a long name {place}", COLOURS[0]) for place in range(9)], 300)
    assert sum(map(len, rows)) == 9 and len(rows) > 2
    assert all(left + 21 + text_width(label) <= 300 for row in rows for left, label, _ in row)


def test_smoothing_keeps_level_and_does_not_lag():
    noisy = [1.0 + (-1) ** place for place in range(300)]
    assert max(abs(value - 1) for value in plot.smoothed(noisy)[20:]) < 0.1
    line = [float(place) for place in range(300)]
    assert plot.smoothed(line)[100:250] == pytest.approx(line[100:250])
    assert plot.smoothed([3.0]) == [3.0]
