"""Closing of reasoning segments by the ramps and by the hard stop."""

from dataclasses import replace

import pytest
import torch

from lit_illada.errors import UserError
from lit_illada.generation.autoregressive import generate_autoregressive
from lit_illada.generation.canvas import RowEvents
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.generation.logit_controls import TokenKinds
from lit_illada.generation.loop_control.thinking_stop import ExponentialRamp, HardStop, LinearRamp, MixtureRamp

MASK, STOP, OPEN, CLOSE, WAIT, ANSWER, VOCABULARY = 0, 1, 2, 3, 7, 8, 23
KINDS = TokenKinds(think_close_id=CLOSE)
OPENED = TokenKinds(think_open_id=OPEN, think_close_id=CLOSE)
CONFIG = GenerationConfig(max_new_tokens=24, block_length=6, num_steps=6)
RAMPS = {
    "linear": LinearRamp(thinking_tokens=16, answer_tokens=4, start_tokens=4, scale=20.0),
    "exponential": ExponentialRamp(start_tokens=4, factor=1.5),
    "mixture": MixtureRamp(thinking_tokens=16, answer_tokens=4, start_tokens=4, max_fraction=0.95),
    "hard": HardStop(thinking_tokens=10, answer_tokens=4),
}
PROMPT = [torch.tensor([9, 9, 9])]


def waits(ids, layout, select, *, cache, start):
    """Model that waits while its reasoning segment is open, then answers twice and stops. It is most confident on the
    right and gives the closing token some probability."""
    logits = torch.zeros(*ids.shape, VOCABULARY, dtype=torch.float64)
    is_close = ids == CLOSE
    closed_at = torch.where(is_close.any(-1), is_close.int().argmax(-1), ids.shape[1])[:, None]
    column = torch.arange(ids.shape[1])
    sure = 5.0 + 0.1 * column
    logits[:, :, CLOSE] = 2.0
    for token, where in [
        (WAIT, column < closed_at),
        (ANSWER, (column > closed_at) & (column <= closed_at + 2)),
        (STOP, column > closed_at + 2),
    ]:
        logits[:, :, token] += torch.where(where, sure, 0.0)
    return logits[select]


@pytest.mark.parametrize("canvas", Canvas)
@pytest.mark.parametrize("name", RAMPS)
def test_an_endless_reasoning_segment_is_closed_and_answered(write, name, canvas):
    config = replace(CONFIG, canvas=canvas, thinking_stop=RAMPS[name])
    generation = write(PROMPT, config, logits_fn=waits, kinds=KINDS, stop_token_ids=[STOP])
    (text,) = generation.texts()
    at = text.index(CLOSE)
    assert text == [WAIT] * at + [CLOSE, ANSWER, ANSWER]
    assert 4 < at <= 16
    assert generation.events == [RowEvents(thinking_stop="forced")]
    endless = write(PROMPT, replace(CONFIG, canvas=canvas), logits_fn=waits, kinds=KINDS, stop_token_ids=[STOP])
    assert endless.texts() == [[WAIT] * 24]
    assert endless.events == [RowEvents(thinking_stop="none")]


@pytest.mark.parametrize("budget", [1, 5, 6, 7, 11])
@pytest.mark.parametrize("num_steps", [1, 3, 6])
def test_a_hard_stop_is_exact_wherever_blocks_end(write, budget, num_steps):
    stop = HardStop(thinking_tokens=budget, answer_tokens=4)
    config = replace(CONFIG, num_steps=num_steps, thinking_stop=stop)
    (text,) = write(PROMPT, config, logits_fn=waits, kinds=KINDS, stop_token_ids=[STOP]).texts()
    assert text == [WAIT] * budget + [CLOSE, ANSWER, ANSWER]


def test_tokens_after_a_forced_close_are_masked_and_generated_again(write):
    config = replace(CONFIG, max_new_tokens=12, thinking_stop=LinearRamp(6, 4, start_tokens=5, scale=4.0))
    states = []

    def on_commit(commit):
        states.append((commit.token_ids[0, 3:].tolist(), commit.is_committed[0, 3:], commit.is_remasked[0, 3:]))

    write(PROMPT, config, logits_fn=waits, kinds=KINDS, stop_token_ids=[STOP], on_commit=on_commit)
    closing = next(number for number, (ids, _, _) in enumerate(states) if CLOSE in ids)
    before, (after, is_committed, is_remasked) = states[closing - 1][0], states[closing]
    at = after.index(CLOSE)
    assert at == 6
    assert before[6:] == [MASK] + [WAIT] * 5, "the model was surer of later places"
    assert after[:7] == [WAIT] * 6 + [CLOSE]
    assert after[7:] == [MASK] * 5
    assert is_committed.nonzero().tolist() == [[at]]
    assert is_remasked.tolist() == [position > at for position in range(12)]
    assert states[-1][0] == [WAIT] * 6 + [CLOSE, ANSWER, ANSWER] + [STOP] * 3


@pytest.mark.parametrize("name", RAMPS)
def test_only_the_closing_token_at_the_leftmost_masked_position_changes(model, write, prompts, name):
    raw, seen = [], []

    def model_that_is_watched(*arguments, **options):
        raw.append(model(*arguments, **options).double())
        return raw[-1]

    def watch(logits, positions):
        seen.append((logits.clone(), positions))
        return logits

    config = replace(CONFIG, thinking_stop=RAMPS[name])
    write(prompts, config, logits_fn=model_that_is_watched, kinds=KINDS, controls=[watch])
    num_changed = 0
    for before, (after, positions) in zip(raw, seen, strict=True):
        changed = (before != after) & (torch.arange(VOCABULARY) != MASK)
        for m in changed.any(-1).nonzero()[:, 0].tolist():
            row, column = positions.rows[m], positions.columns[m]
            assert column == (positions.token_ids[row] == MASK).nonzero()[0, 0]
            assert column - 5 > 4, "not before the start"
            assert CLOSE not in positions.token_ids[row], "not in an answer"
            assert name == "hard" or changed[m].nonzero().tolist() == [[CLOSE]]
            num_changed += 1
    assert num_changed > 0


def test_a_natural_close_is_recorded_as_natural(write):
    def ends_at_eight(ids, layout, select, *, cache, start):
        logits = waits(ids, layout, torch.ones_like(ids, dtype=torch.bool), cache=None, start=0)
        logits = logits.view(*ids.shape, VOCABULARY)
        if ids.shape[1] > 11 and CLOSE not in ids:
            logits[:, 11, CLOSE] = 99.0
        return logits[select]

    options = {"logits_fn": ends_at_eight, "kinds": KINDS, "stop_token_ids": [STOP]}
    plain = write(PROMPT, CONFIG, **options)
    for stop in (HardStop(thinking_tokens=20, answer_tokens=4), LinearRamp(20, 4, start_tokens=8, scale=1.0)):
        mitigated = write(PROMPT, replace(CONFIG, thinking_stop=stop), **options)
        assert mitigated.texts() == plain.texts() == [[WAIT] * 8 + [CLOSE, ANSWER, ANSWER]]
        assert mitigated.events == plain.events == [RowEvents(thinking_stop="natural")]
    early = write(PROMPT, replace(CONFIG, thinking_stop=LinearRamp(20, 4, start_tokens=2, scale=1e3)), **options)
    assert early.events[0].thinking_stop == "forced"


def test_a_text_without_an_opening_token_is_unchanged(write):
    config = replace(CONFIG, thinking_stop=RAMPS["hard"])
    for prompt, is_thinking in [([9, 9, 9], False), ([9, OPEN, 9], True), ([OPEN, 9, CLOSE], False)]:
        options = {"logits_fn": waits, "stop_token_ids": [STOP]}
        prompts = [torch.tensor(prompt)]
        if CLOSE in prompt:
            options["logits_fn"] = lambda ids, *rest, **more: waits(torch.where(ids == CLOSE, 9, ids), *rest, **more)
        written = write(prompts, config, kinds=OPENED, **options)
        assert (CLOSE in written.texts()[0]) == is_thinking
        if not is_thinking:
            assert written.token_ids.equal(write(prompts, replace(CONFIG, block_length=6), **options).token_ids)


def test_a_tokenizer_without_the_token_is_rejected(write):
    with pytest.raises(UserError, match="the tokenizer names no think_close_token"):
        write(PROMPT, replace(CONFIG, thinking_stop=RAMPS["linear"]))


@pytest.mark.parametrize("name", RAMPS)
def test_a_causal_model_is_stopped_by_the_same_rules(name):
    def waits_causally(ids, layout, select, *, cache, start):
        # once the rest is cached, ids is the last token only, which determines what follows
        logits = torch.zeros(*ids.shape, VOCABULARY, dtype=torch.float64)
        logits[:, :, CLOSE] = 2.0
        for token, then in [(CLOSE, ANSWER), (ANSWER, STOP)]:
            logits[:, :, then] += 9.0 * (ids == token)
        logits[:, :, WAIT] += 5.0 * ((ids != CLOSE) & (ids != ANSWER))
        return logits[select]

    generation = generate_autoregressive(
        waits_causally,
        [torch.tensor([9, 9, 9]), torch.tensor([9])],
        replace(CONFIG, thinking_stop=RAMPS[name]),
        bos_token_id=STOP,
        mask_token_id=MASK,
        stop_token_ids=[STOP],
        max_position_embeddings=64,
        kinds=KINDS,
    )
    first, second = generation.texts()
    at = first.index(CLOSE)
    assert first == second == [WAIT] * at + [CLOSE, ANSWER]
    assert at == 10 if name == "hard" else 4 < at <= 16
    assert [events.thinking_stop for events in generation.events] == ["forced", "forced"]
