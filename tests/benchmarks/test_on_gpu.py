"""The list of runs for a GPU: every command is one that its script takes. None is run here."""

from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import on_gpu


@pytest.mark.parametrize("name", on_gpu.RUNS)
def test_commands_are_understood(name):
    options = on_gpu.parse(["--reference", "original", "--comfyui", "host", "--output", "tables"])
    script, *arguments = on_gpu.command(name, options)
    if script == "-m":
        assert Path(arguments[1]).is_dir() and arguments[0] == "jodi_core.conformance"
        return
    made = import_module(script.replace("/", ".").removesuffix(".py")).parse(arguments)
    assert getattr(made, "device", "cuda") == "cuda" and made.output == options.output / f"{name}.md"


def test_what_is_missing_is_left_out(capsys):
    assert on_gpu.main(["--list", "--comfyui", "host"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "transformer: left out, it needs --reference" in lines and any("--comfyui" in line for line in lines)


def test_a_run_that_takes_too_long_may_tidy_up(monkeypatch, tmp_path, capsys):
    script = tmp_path / "slow.py"
    script.write_text("import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
                      "try:\n    time.sleep(60)\nfinally:\n    print('tidied', flush=True)\n")
    monkeypatch.setattr(on_gpu, "RUNS", {"slow": str(script)})
    assert on_gpu.main(["--output", str(tmp_path), "--seconds", "2"]) == 1
    assert "stopped after 2 s" in capsys.readouterr().out and "tidied" in (tmp_path / "slow.log").read_text()


def test_a_failing_run_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(on_gpu, "RUNS", {"bad": "-c raise(SystemExit(3))", "good": "-c print(1)"})
    assert on_gpu.main(["--output", str(tmp_path)]) == 1
    assert "FAILED (3)" in capsys.readouterr().out and (tmp_path / "good.log").read_text() == "1\n"
