"""Which samples a step reads, and how a batch is shared out."""

from pathlib import Path

import pytest
import torch

from training.data import MicroBatches
from training.order import BatchOrder
from training.parallel import Processes

from toy_run import MODEL, SQUARE, ToySource, toy_config

BINS = torch.tensor([0] * 50 + [1] * 9 + [7] * 3)


def test_every_sample_comes_once_per_pass_of_its_bin_and_none_is_dropped():
    order = BatchOrder(BINS, batch=4, batches=400, seed=0)
    seen = {number: [] for number in (0, 1, 7)}
    for step in range(400):
        samples = order.samples(step)
        bins = {int(BINS[i]) for i in samples}
        assert len(samples) == 4 and len(bins) == 1, "a batch has one size"
        seen[bins.pop()] += samples
    for number, samples in seen.items():
        members = (BINS == number).nonzero().flatten().tolist()
        passes = [samples[i:i + len(members)] for i in range(0, len(samples) - len(members), len(members))]
        assert all(sorted(turn) == members for turn in passes)
        assert len(set(map(tuple, passes))) > min(4, len(passes) // 2), "passes differ in their order"
        assert len(samples) / 1600 == pytest.approx(len(members) / len(BINS), abs=0.01)


def test_sizes_are_mixed_evenly_over_the_run():
    order = BatchOrder(BINS, batch=4, batches=400, seed=0)
    wide = [step for step in range(400) if int(order.bin_of[step]) == 1]
    quarter = [sum(start <= step < start + 100 for step in wide) for start in range(0, 400, 100)]
    assert max(quarter) - min(quarter) <= 2


def test_a_step_is_a_function_of_the_seed_and_its_number():
    one, again, other = (BatchOrder(BINS, 4, 300, seed) for seed in (3, 3, 4))
    for step in (200, 3, 250, 0):
        assert one.samples(step) == again.samples(step)
    assert [one.samples(step) for step in range(9)] != [other.samples(step) for step in range(9)]
    longer = BatchOrder(BINS, 4, 600, 3)
    assert [longer.samples(step) for step in range(300)] == [one.samples(step) for step in range(300)]


@pytest.mark.parametrize("in_turn", [True, False])
def test_processes_share_one_batch(tmp_path, in_turn):
    """Whatever their number: the same samples, captions, questions."""
    config = toy_config(tmp_path, batch=8, in_turn=in_turn)
    order = BatchOrder(ToySource.bins_N, 8, config.steps, 0)

    def everything(world):
        found = {}
        for rank in range(world):
            data = MicroBatches(ToySource(), order, config, MODEL, Processes(rank, world))
            for batch, questions in (data[number] for number in range(len(data))):
                for row, question in enumerate(questions):
                    key = batch.names[row], float(question.noise_CLHW.sum())
                    found[key] = question.roles, question.sigma, float(batch.text_BMC[row].sum())
        return found
    alone = everything(1)
    assert len(alone) == 8 * config.steps and everything(2) == alone and everything(4) == alone


def test_absent_domains_are_never_asked_for(tmp_path):
    for in_turn in (True, False):
        config = toy_config(tmp_path, in_turn=in_turn, steps=40)
        data = MicroBatches(ToySource(), BatchOrder(ToySource.bins_N, 4, 40, 0), config, MODEL, Processes())
        for batch, questions in (data[number] for number in range(len(data))):
            for present_L, question in zip(batch.present_BL, questions):
                assert all(present_L[domain] for domain in question.roles.active)


def test_tasks_take_turns(tmp_path):
    config = toy_config(tmp_path, batch=6)
    data = MicroBatches(ToySource(), BatchOrder(ToySource.bins_N, 6, 6, 0), config, MODEL, Processes())
    tasks = [{question.task for question in data[number][1]} for number in range(9)]
    assert tasks == [{"joint"}, {"control"}, {"perceive"}] * 3


def test_a_batch_that_cannot_be_shared_out():
    config = toy_config(Path("unused"), batch=10)
    with pytest.raises(ValueError, match="not a multiple of micro_batch 2 times 4 processes: choose batch = 8"):
        config.accumulation(4)


def test_a_resumed_reader_goes_on(tmp_path):
    config = toy_config(tmp_path)
    data = MicroBatches(ToySource(), BatchOrder(ToySource.bins_N, 4, 6, 0), config, MODEL, Processes())
    later = data.from_step(4)
    assert len(later) == 4 and later[0][0].names == data[8][0].names
    assert SQUARE == 40
