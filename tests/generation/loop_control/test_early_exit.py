"""Early exit from reasoning once the answer's entropy has settled."""

from dataclasses import replace

import pytest
import torch

from lit_illada.errors import UserError
from lit_illada.generation.canvas import RowEvents
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.generation.logit_controls import TokenKinds
from lit_illada.generation.loop_control.early_exit import Settled, Spread

MASK, STOP, CLOSE, WAIT, ANSWER, VOCABULARY = 0, 1, 3, 7, 8, 23
KINDS = TokenKinds(think_close_id=CLOSE)
CONFIG = GenerationConfig(max_new_tokens=48, block_length=4, num_steps=4)
RULE = Settled(threshold=1e-6, smoothing=0.2, min_trials=3, answer_tokens=2)
PROMPT = [torch.tensor([9, 9])]


def thinker(sureness_of):
    """Model that never closes its segment; its confidence in an answer depends on the length of the segment."""

    def logits_fn(ids, layout, select, *, cache, start):
        logits = torch.zeros(*ids.shape, VOCABULARY, dtype=torch.float64)
        for row, row_ids in enumerate(ids.tolist()):
            at = row_ids.index(CLOSE) if CLOSE in row_ids else len(row_ids)
            logits[row, :at, WAIT] = 9.0
            logits[row, at:, ANSWER] = sureness_of(at - 2)
            logits[row, at + 3 :, STOP] = 99.0
        return logits[select]

    return logits_fn


def variance_by_hand(entropies, smoothing):
    mean, variance = entropies[0], 0.0
    for entropy in entropies[1:]:
        mean = (1 - smoothing) * mean + smoothing * entropy
        variance = (1 - smoothing) * variance + smoothing * (entropy - mean) ** 2
    return variance / (1 - (1 - smoothing) ** (len(entropies) - 1))


@pytest.mark.parametrize("smoothing", [0.1, 0.2, 0.7])
def test_the_spread_is_the_bias_corrected_moving_variance(smoothing):
    entropies = torch.rand(12, generator=torch.Generator().manual_seed(1)).mul(3).tolist()
    for threshold in (0.05, 0.3, 0.6):
        rule, spread = Settled(threshold=threshold, smoothing=smoothing, min_trials=4), Spread()
        for number, entropy in enumerate(entropies, start=1):
            is_settled = spread.add(entropy, rule)
            by_hand = number > 1 and variance_by_hand(entropies[:number], smoothing) < threshold
            assert is_settled == (number >= 4 and by_hand)


@pytest.mark.parametrize("canvas", Canvas)
def test_a_settled_answer_closes_the_segment_in_the_next_block(write, canvas):
    config = replace(CONFIG, canvas=canvas, early_exit=RULE)
    options = {"logits_fn": thinker(lambda length: 6.0), "kinds": KINDS, "stop_token_ids": [STOP]}
    generation = write(PROMPT, config, **options)
    assert generation.texts() == [[WAIT] * 12 + [CLOSE, ANSWER, ANSWER]]
    assert generation.events == [RowEvents(thinking_stop="early_exit")]
    if canvas is Canvas.append:
        # three blocks of four steps and a trial after each; one for the closing token, three for the rest
        assert generation.num_forwards == 3 * (4 + 1) + 1 + 3
    endless = write(PROMPT, replace(CONFIG, canvas=canvas), **options)
    assert endless.texts() == [[WAIT] * 48]


def test_an_answer_that_changes_with_the_segment_is_not_settled(write):
    wavering = thinker(lambda length: 6.0 if length // 4 % 2 else 1.0)
    generation = write(PROMPT, replace(CONFIG, early_exit=RULE), logits_fn=wavering, kinds=KINDS)
    assert generation.texts() == [[WAIT] * 48]
    settles = thinker(lambda length: 6.0 if length >= 16 or length // 4 % 2 else 1.0)
    rule = replace(RULE, threshold=0.1, smoothing=0.5)
    late = write(PROMPT, replace(CONFIG, early_exit=rule), logits_fn=settles, kinds=KINDS)
    assert 16 < late.texts()[0].index(CLOSE) < 44


def test_a_trial_reads_the_start_of_the_answer_without_changing_the_text(write):
    trials = []

    def watched(ids, layout, select, *, cache, start):
        if CLOSE in ids:
            trials.append((ids[0, 2:].tolist(), (select[0].nonzero()[:, 0] - 2).tolist()))
        return thinker(lambda length: float(length))(ids, layout, select, cache=cache, start=start)

    config = replace(CONFIG, max_new_tokens=14, early_exit=RULE)
    generation = write(PROMPT, config, logits_fn=watched, kinds=KINDS)
    assert trials == [
        ([WAIT] * 4 + [CLOSE, MASK, MASK], [5, 6]),
        ([WAIT] * 8 + [CLOSE, MASK, MASK], [9, 10]),
    ], "there is no room for a third answer"
    assert generation.texts() == [[WAIT] * 14]


def test_a_tokenizer_without_the_token_is_rejected(write):
    with pytest.raises(UserError, match="the tokenizer names no think_close_token"):
        write(PROMPT, replace(CONFIG, early_exit=RULE))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Settled(threshold=0.0), "generation.early_exit.threshold is 0.0: it must be above 0"),
        (lambda: Settled(smoothing=1.5), "smoothing is 1.5"),
        (lambda: Settled(min_trials=1), "min_trials is 1: it must be 2 or more"),
        (lambda: Settled(answer_tokens=0), "answer_tokens is 0"),
    ],
)
def test_an_invalid_rule_is_rejected(make, message):
    with pytest.raises(UserError, match=message):
        make()
