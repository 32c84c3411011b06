"""Pictures that cannot be read, in a run with workers and a cache; and a run that is killed at random."""

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import resume_soak
from training import cli, faults
from training.world import write_dataset

pytestmark = [pytest.mark.filterwarnings("ignore:Mismatch dtype"),
              pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
              pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")]
CONFIG = """
output = "{0}/run"
steps = 6
batch = 2
micro_batch = 2
mode = "lora"
adapter.rank = 2
start = {{weights = "tiny", autoencoder = "tiny", text_encoder = "tiny"}}
data = {{cache = "{0}/cache", sets = [{{path = "{0}/scenes"}}]}}
speed = {{device = "cpu", precision = "float32", workers = 2}}
watch = {{every = 3, tensorboard = false}}
"""


@pytest.fixture
def spoilt(tmp_path):
    """A configuration; of six samples one lacks a label and another is cut short. torch has one thread."""
    write_dataset(tmp_path / "scenes", 6, 0, 128)
    entries = [json.loads(line) for line in (tmp_path / "scenes" / "metadata.jsonl").read_text().splitlines()]
    (tmp_path / "scenes" / entries[1]["annotation_depth"]).unlink()
    path = tmp_path / "scenes" / entries[4]["image"]
    path.write_bytes(path.read_bytes()[:300])
    (tmp_path / "run.toml").write_text(CONFIG.format(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "run.toml", entries
    torch.set_num_threads(threads)


def test_bad_pictures_are_noted_once_and_counted(spoilt, tmp_path, capsys):
    """In every pass over the data they are met again, by one worker or the other."""
    config, entries = spoilt
    cli.main(["train", str(config)])
    noted = [json.loads(line) for line in (tmp_path / "run" / faults.NAME).read_text().splitlines()]
    assert sorted(fault["kind"] for fault in noted) == ["skipped", "skipped"]
    for entry, field in ((entries[1], "annotation_depth"), (entries[4], "image")):
        assert sum(entry[field] in fault["message"] for fault in noted) == 1
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["faults"] == 2 and sum(line["skipped"] for line in log) == 4
    told = capsys.readouterr().out
    assert told.count(entries[4]["image"]) == 1
    assert told.splitlines()[-1].startswith("finished: step 6; faults: 2, see ")


def test_a_bad_picture_ends_the_run_if_so_configured(spoilt, tmp_path, capsys):
    config, entries = spoilt
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", str(config), 'data.on_error="stop"'])
    last = capsys.readouterr().out.splitlines()[-1]
    assert stopped.value.code == 6 and last.startswith("stopped, exit code 6: ")
    assert entries[1]["annotation_depth"] in last or entries[4]["image"] in last


def test_a_run_killed_at_random_ends_like_any_other():
    """A short form of the soak: with a cache, with workers."""
    options = ["--kills", "3", "--steps", "16", "--seed", "5", "--fresh", "0"]
    done = subprocess.run([sys.executable, "-W", "ignore", resume_soak.__file__, *options], capture_output=True,
                          text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(line.rsplit("  ", 1) for line in done.stdout.splitlines() if "  " in line)    # but for "so far"
    told = {name.strip(): value.strip() for name, value in rows.items()}
    assert told["kills"] == "3" and told["result"] == "identical bit for bit" and int(told["steps compared"]) >= 16


def test_the_soak_sees_a_difference(tmp_path):
    plan, result = resume_soak.Plan(tmp_path), resume_soak.Result()
    for name, lines in (("whole", ["0 0x1p0", "1 0x1p1"]), ("killed", ["0 0x1p0", "0 0x1p0", "1 0x1.8p1"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "losses_0.txt").write_text("\n".join(lines) + "\n")
    resume_soak.compare_losses(plan, "killed", result)
    assert result.faults == ["killed, process 0: step 1 0x1.8p1", "killed, process 0: steps are missing"]
