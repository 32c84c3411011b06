"""The speed table: its contenders agree, and what it counts is right. Nothing here asserts how fast anything is."""

import re

import pytest
import torch
from torch import nn

from benchmarks import performance, timing
from benchmarks.cases import SIZES, Inputs, Setting, jobs, relative_difference
from benchmarks.contenders import Dense, Ours

CPU = torch.device("cpu")


def job_of(task, *, stage="forward", size="tiny", batch=1, tokens=5, steps=3):
    made, = jobs(Setting(SIZES[size], CPU, torch.float32), [stage], [task], [batch], [SIZES[size].pixels],
                 text_tokens=tokens, steps=steps)
    return made


def test_quick_run_compares_every_stage_and_writes_the_table(tmp_path, capsys):
    assert performance.main(["--quick", "--output", str(tmp_path / "table.md")]) == 0
    written = (tmp_path / "table.md").read_text()
    assert "load average" in written and written.strip() in capsys.readouterr().out
    rows = re.findall(r"^\| (\w+) (\w+), batch 2, 64 px \| (\S+) \|.*\| (\S*) \|$", written, re.M)
    found = {(stage, task) for stage, task, name, difference in rows if name == "ours" and 0 < float(difference) < 0.1}
    assert found == {(stage, task) for stage in ("forward", "sample", "whole") for task in ("control", "perceive1")}


def test_a_wrong_result_is_marked_and_fails_the_run(monkeypatch, capsys):
    monkeypatch.setattr(Ours, "forward", lambda self, job, inputs: 1.01 * Dense.forward(
        Dense(self.setting, with_autoencoder=False), job, inputs))
    assert performance.main(["--quick", "--stages", "forward"]) == 1
    assert re.search(r"\| ours \|.*\| WRONG 1.0e-02 \|", capsys.readouterr().out)


def test_numbers_that_are_not_finite_never_agree():
    expected = torch.ones(3)
    assert not relative_difference(expected.clone().fill_(torch.nan), expected) <= 1
    assert not relative_difference(torch.ones(2), expected) <= 1


def test_operations_are_those_of_the_cost_formula():
    """Spec 11."""
    job = job_of("joint", tokens=12)
    config = job.setting.size.config
    C, domains, tokens, text, attended = config.hidden_size, config.num_domains, 16, config.model_max_length, 12
    blocks = config.depth * domains * tokens * (27 * C ** 2 + 90 * C + 132 * C + 4 * attended * C)
    captions = config.depth * 4 * attended * C ** 2 + 2 * text * (config.caption_channels * C + C ** 2)
    ends = 2 * domains * tokens * 2 * config.in_channels * C
    vectors = 2 * (256 * C + C ** 2) + 12 * C ** 2 * (1 + domains)
    assert timing.operations_of_ours(job) == blocks + captions + ends + vectors


@pytest.mark.parametrize("stage", ["forward", "sample", "whole"])
def test_counting_without_computing_finds_what_a_run_does(stage):
    job = job_of("control", stage=stage, batch=2)
    ours = Ours(job.setting, with_autoencoder=True)
    inputs = Inputs.of(job, ours.network.y_embedder.y_embedding)
    assert timing.operations_of_ours(job) == timing.operations(lambda: getattr(ours, stage)(job, inputs))[1]


def test_contenders_take_turns_and_the_order_turns_round():
    turns = []
    found = timing.interleaved({name: lambda name=name: turns.append(name) for name in "ab"}, 3, CPU)
    assert "".join(turns) == "abbaab" and [len(times.seconds) for times in found.values()] == [3, 3]


def test_peak_memory_is_that_of_a_process_of_its_own(monkeypatch):
    """The tiny model in a process that is larger than what it needs."""
    ballast = nn.Parameter(torch.ones(10 ** 9 // 4), requires_grad=False)
    options = performance.parse(["--size", "tiny", "--threads", "1"])
    found = int(performance.memory(job_of("perceive1"), "ours", None, None, options))
    assert 50 < found < 1000 < timing.process_peak() / 1e6 and len(ballast)


def test_what_comfyui_computes_twice_is_little():
    """Block 0 for both branches, and the text's keys and values in every step (docs/architecture.md)."""
    step = timing.operations_of_ours(job_of("joint", stage="sample", size="1600M", tokens=60, steps=4)) - \
        timing.operations_of_ours(job_of("joint", stage="sample", size="1600M", tokens=60, steps=3))
    alone = timing.operations_of_ours(job_of("joint", size="1600M", tokens=60))
    assert 0.0085 < 1 - step / (2 * alone) < 0.0095
