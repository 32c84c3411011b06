"""Masked text diffusion on a network that is a table: what is drawn, in which order, and what the options change."""

import pytest
import torch

from jodi_core.dual_diffusion.text_sampling import TextOptions, TextSampler, sample_text, seeded_draws, text_times
from jodi_core.dual_diffusion.writing import score_texts, write_texts

END, CLASSES = 1, 6
MASK = CLASSES - 1


def table(length: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, length, CLASSES, generator=torch.Generator().manual_seed(seed))


def network_of(logits_BLV: torch.Tensor):
    """Says what the table says, whatever the other words are."""
    def network(rows, ids_RL, places_RL):
        return logits_BLV[rows][places_RL]
    return network


def listening(logits_BLV: torch.Tensor):
    """What depends on the words around, as a text does: the number of words so far shifts the table."""
    def network(rows, ids_RL, places_RL):
        known_R = (ids_RL * (ids_RL != MASK)).sum(1)
        return torch.stack([logits_BLV[row].roll(int(known), -1) for row, known in zip(rows, known_R)])[places_RL]
    return network


def run(network, start_BL, seeds=(3,), steps=8, **settings):
    return sample_text(network, start_BL, seeded_draws(list(seeds)), steps=steps, mask_id=MASK, end_id=END, **settings)


def blank(length: int, rows: int = 1) -> torch.Tensor:
    return torch.full((rows, length), MASK)


def test_given_words_stay_and_no_blank_is_left():
    start = blank(40)
    start[0, ::3] = torch.arange(14) % MASK
    made = run(listening(table(40)), start)
    assert torch.equal(made[0, ::3], start[0, ::3]) and not (made == MASK).any()


def test_a_blank_stays_one_with_probability_s_over_t():
    left = []
    run(network_of(torch.zeros(1, 4000, CLASSES)), blank(4000), steps=4,
        callback=lambda step, steps, ids: left.append((ids == MASK).sum().item() / 4000))
    assert left == pytest.approx([0.75, 0.5, 0.25, 0], abs=0.03)


def test_words_have_the_network_s_frequencies():
    logits = torch.tensor([0.5, 0.1, 0.25, 0.15, 1e-9, 3.0]).log()    # the mask itself is never drawn
    made = run(network_of(logits.expand(1, 8000, CLASSES)), blank(8000), steps=2)[0]
    assert (made.bincount(minlength=CLASSES) / 8000).tolist() == pytest.approx([0.5, 0.1, 0.25, 0.15, 0, 0], abs=0.02)


def test_a_row_is_the_same_alone_and_with_others():
    network = listening(table(30, rows=3))
    together = run(network, blank(30, rows=3), seeds=(5, 6, 7))
    for row in range(3):
        alone = run(lambda rows, *rest: network(rows + row, *rest), blank(30), seeds=(5 + row,))
        assert torch.equal(alone[0], together[row])
    assert not torch.equal(together[0], together[1])


def test_unchanged_rows_are_not_evaluated_again(monkeypatch):
    network, calls = listening(table(6, rows=2)), []

    def counted(rows, ids, places):
        calls.append(rows.tolist())
        return network(rows, ids, places)

    start = blank(6, rows=2)
    start[1, 1:] = 2    # a single blank
    lazy = run(counted, start, seeds=(1, 2), steps=100)
    assert len(calls) <= 7 and sum(row == 1 for rows in calls for row in rows) == 1
    evaluate = TextSampler.evaluate
    monkeypatch.setattr(TextSampler, "evaluate", lambda self, rows: (self.log_p.clear(), evaluate(self, rows)))
    assert torch.equal(run(network, start, seeds=(1, 2), steps=100), lazy)


def test_one_step_and_the_closing_pass():
    logits = table(12)
    made = run(network_of(logits), blank(12), steps=1)
    assert not (made == MASK).any()
    sampler = TextSampler(network_of(logits), blank(12), MASK, END, TextOptions())
    sampler.close()
    assert torch.equal(sampler.ids_BL[0], logits[0, :, :MASK].argmax(-1)) and sampler.evaluations == 1


@pytest.mark.parametrize("steps, start, message", [
    (0, blank(3), "steps 0 must be at least 1"),
    (4, torch.zeros(1, 3, dtype=torch.long), "the text has no blanks"),
])
def test_nothing_to_do_is_refused(steps, start, message):
    with pytest.raises(ValueError, match=message):
        run(network_of(table(3)), start, steps=steps)


def test_times():
    assert text_times(4) == pytest.approx([1, 0.7500025, 0.500005, 0.2500075, 1e-5])


def test_a_callback_ends_a_run():
    def stop(step, steps, ids):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run(network_of(table(3)), blank(3), callback=stop)


# ---- options ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [TextOptions(temperature=0.001), TextOptions(top_k=1), TextOptions(top_p=1e-6)])
def test_narrow_distributions_give_the_likeliest_words(options):
    logits = table(50)
    assert torch.equal(run(network_of(logits), blank(50), options=options)[0], logits[0, :, :MASK].argmax(-1))


def test_top_k_and_top_p_leave_out_the_rest():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.07, 0.03, 1e-9]).log().expand(1, 3000, CLASSES)
    for options, words in ((TextOptions(top_k=2), 2), (TextOptions(top_p=0.75), 3), (TextOptions(top_p=0.65), 2)):
        found = run(network_of(logits), blank(3000), options=options)[0].bincount(minlength=CLASSES)
        assert (found[:words] > 0).all() and not found[words:].any(), options


def test_temperature_flattens():
    logits = torch.tensor([0.9, 0.1, 1e-9, 1e-9, 1e-9, 1e-9]).log().expand(1, 5000, CLASSES)
    found = run(network_of(logits), blank(5000), options=TextOptions(temperature=2))[0].bincount(minlength=CLASSES)
    assert (found[:2] / 5000).tolist() == pytest.approx([0.75, 0.25], abs=0.02)


def test_confident_order():
    """So many per step, the sure places first; every word is still drawn."""
    logits = torch.zeros(1, 20, CLASSES)
    logits[0, 7, 2], logits[0, 13, 3] = 40, 30
    seen = []
    made = run(network_of(logits), blank(20), steps=10, options=TextOptions(confident=True),
               callback=lambda step, steps, ids: seen.append(ids[0].clone()))
    assert [(ids != MASK).sum().item() for ids in seen] == list(range(2, 22, 2))
    assert (seen[0] != MASK).nonzero()[:, 0].tolist() == [7, 13] and made[0, 7] == 2 and made[0, 13] == 3


def test_early_stop():
    """Once the text up to its end is there, the rest is not drawn."""
    logits = torch.full((1, 400, CLASSES), -20.0)
    logits[0, :, 2] = 0
    logits[0, 10, END] = 40
    steps = []
    made = run(network_of(logits), blank(400), steps=200, options=TextOptions(stop_at_end=True),
               callback=lambda step, steps_, ids: steps.append(step))
    full = run(network_of(logits), blank(400), steps=200)
    assert torch.equal(made[0, :11], full[0, :11]) and (made[0, 11:] == END).any() and (full[0, 11:] == 2).all()
    assert len(steps) < 200


def test_early_stop_waits_for_what_comes_before_the_end():
    start = blank(10)
    start[0, 3] = END    # given: not the end of what is generated
    made = run(network_of(table(10)), start, options=TextOptions(stop_at_end=True))
    assert not (made == MASK).any() and not (made[0, :3] == MASK).any()


def test_minimum_length():
    logits = torch.zeros(1, 30, CLASSES)
    logits[..., END] = 30
    start = blank(30)
    start[0, :5] = 0
    made = run(network_of(logits), start, options=TextOptions(min_length=7))[0]
    assert not (made[:12] == END).any() and (made[12:] == END).all()


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5},
                                      {"min_length": -1}])
def test_options_that_cannot_be(settings):
    with pytest.raises(ValueError, match="must be above 0"):
        TextOptions(**settings)


def test_the_best_of_several_samples():
    """Sample by sample as with the next seeds, and the one that the score prefers."""
    network, asked = listening(table(12, rows=2)), torch.ones(1, 12, dtype=torch.bool)
    settings = {"steps": 6, "mask_id": MASK, "end_id": END}
    best = write_texts(network, blank(12, rows=2), seed=4, samples=3, **settings)
    for picture in range(2):
        def of_picture(rows, *rest):
            return network(torch.full_like(rows, picture), *rest)
        texts = run(of_picture, blank(12, rows=3), seeds=[4 + 3 * picture + i for i in range(3)], steps=6)
        scores = score_texts(of_picture, texts, asked.expand(3, -1), MASK)
        assert len(set(scores.tolist())) == 3
        assert torch.equal(best[picture], texts[scores.argmin()])


def test_a_likely_text_scores_better():
    logits = table(20)
    asked = torch.ones(1, 20, dtype=torch.bool)
    likely, unlikely = logits[:, :, :MASK].argmax(-1), logits[:, :, :MASK].argmin(-1)
    good, bad = (score_texts(network_of(logits), words, asked, MASK).item() for words in (likely, unlikely))
    assert good < bad and good == score_texts(network_of(logits), likely, asked, MASK).item()


@pytest.mark.parametrize("settings", [{"samples": 0, "seed": 1}, {"seed": -1}, {"seed": 2 ** 64}])
def test_samples_and_seeds_that_cannot_be(settings):
    with pytest.raises(ValueError, match="samples .* must be at least 1, and seed .* between 0 and"):
        write_texts(network_of(table(3)), blank(3), steps=2, mask_id=MASK, end_id=END, **settings)
