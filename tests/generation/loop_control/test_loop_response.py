"""Responses to loops: remasking with the old tokens forbidden, and a higher temperature for a block."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lit_illada.errors import UserError
from lit_illada.generation.autoregressive import generate_autoregressive
from lit_illada.generation.commit_rules import Threshold
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.generation.loop_control.loop_response import RemaskSpan, TemperatureKick

MASK, STOP, VOCABULARY = 0, 1, 23
CONFIG = GenerationConfig(max_new_tokens=32, block_length=8, num_steps=8)
SHORT = {"min_length": 12}
PROMPT = [torch.tensor([9, 9])]


def loops(sure=9.0, until=1000):
    """A model that repeats 5 6 7 8 up to a position, then counts; the second choice is 4 higher."""

    def logits_fn(ids, layout, select, *, cache, start):
        positions = torch.arange(ids.shape[1]) - 2
        wanted = torch.where(positions < until, 5 + positions % 4, 9 + positions % 11).clamp(min=2).expand_as(ids)
        second = wanted + 4
        return (sure * F.one_hot(wanted, VOCABULARY) + (sure - 2) * F.one_hot(second.clamp(max=22), VOCABULARY))[select]

    return logits_fn


class Watch:
    """Every token of each position, in order of commits."""

    def __init__(self):
        self.written = {}
        self.steps = 0

    def __call__(self, commit):
        self.steps += 1
        for _, column in commit.is_committed.nonzero().tolist():
            self.written.setdefault(column - 2, []).append(commit.token_ids[0, column].item())


@pytest.mark.parametrize("canvas", Canvas)
def test_copies_after_the_first_are_regenerated_differently(write, canvas):
    watch = Watch()
    config = replace(CONFIG, canvas=canvas, on_loop=RemaskSpan(**SHORT, max_remasks=1))
    generation = write(PROMPT, config, logits_fn=loops(until=16), on_commit=watch)
    # the loop is 16 tokens long when the second block is full; its second choices loop too, but a place has one chance
    (alarm, again) = generation.events[0].alarms[:2]
    assert (alarm.start, alarm.period, alarm.length, alarm.num_remasked) == (0, 4, 16, 12)
    assert alarm.step == 16
    assert again.num_remasked == 0
    assert generation.texts()[0][:16] == [5, 6, 7, 8] + [9, 10, 11, 12] * 3
    assert all(len(watch.written[position]) == (2 if 4 <= position < 16 else 1) for position in range(32))
    assert not generation.token_ids.eq(MASK).any()


@pytest.mark.parametrize("max_remasks", [1, 2, 3])
def test_a_position_is_remasked_at_most_max_remasks_times_and_changes_its_token(write, max_remasks):
    watch = Watch()
    config = replace(CONFIG, on_loop=RemaskSpan(min_period=1, **SHORT, max_remasks=max_remasks))
    generation = write(PROMPT, config, logits_fn=loops(), on_commit=watch)
    assert sorted(watch.written) == list(range(32))
    assert max(map(len, watch.written.values())) == max_remasks + 1
    for tokens in watch.written.values():
        assert all(new != old for new, old in zip(tokens[1:], tokens[:-1], strict=True))
    num_remasked = sum(alarm.num_remasked for alarm in generation.events[0].alarms)
    assert num_remasked == sum(len(tokens) - 1 for tokens in watch.written.values())
    assert not generation.token_ids.eq(MASK).any()


def test_blocks_are_regenerated_left_to_right_without_later_context(write):
    seen = []

    def logits_fn(ids, layout, select, *, cache, start):
        seen.append((ids.shape[1] - 2, (select[0].nonzero()[:, 0] - 2).tolist()))
        return loops(until=16)(ids, layout, select, cache=cache, start=start)

    config = replace(CONFIG, commit_rule=Threshold(0.1), on_loop=RemaskSpan(**SHORT, max_remasks=1))
    write(PROMPT, config, logits_fn=logits_fn)
    assert seen[:4] == [
        (8, [*range(8)]),
        (16, [*range(8, 16)]),
        (8, [*range(4, 8)]),
        (16, [*range(8, 16)]),
    ]


def test_a_text_that_stops_or_does_not_loop_raises_no_alarm(write):
    config = replace(CONFIG, on_loop=RemaskSpan())
    straight = write(PROMPT, config, logits_fn=loops(until=0))
    assert straight.events[0].alarms == ()
    assert straight.token_ids.equal(write(PROMPT, CONFIG, logits_fn=loops(until=0)).token_ids)
    stopped = write(PROMPT, replace(config, on_loop=RemaskSpan(**SHORT)), logits_fn=loops(), stop_token_ids=[8])
    assert stopped.events[0].alarms == ()
    assert stopped.texts() == [[5, 6, 7]]


@pytest.mark.parametrize("base", [0.0, 0.1])
def test_the_temperature_change_lasts_one_block(write, base):
    raised_alarms = []

    def texts(seed):
        kick = TemperatureKick(min_length=16, increase=50.0)
        config = replace(CONFIG, max_new_tokens=40, temperature=base, seed=seed, on_loop=kick)
        generation = write(PROMPT, config, logits_fn=loops(sure=12.0))
        raised_alarms.append(generation.events[0].alarms)
        return generation.texts()[0]

    script = [5 + position % 4 for position in range(40)]
    plain = write(PROMPT, replace(CONFIG, max_new_tokens=40), logits_fn=loops(sure=12.0)).texts()[0]
    assert plain == script
    for seed in range(3):
        text = texts(seed)
        assert text[:16] == script[:16]
        assert text[16:24] != script[16:24], "at a temperature of 50 all tokens are alike"
        assert text[24:40] == script[24:40], "and the block after it is cool again"
        (first, *rest) = raised_alarms[-1]
        assert (first.start, first.length, first.step, first.num_remasked) == (0, 16, 16, 0)
        assert all(alarm.step == 40 for alarm in rest), "the last blocks are a loop once more"
    assert len({tuple(texts(seed)) for seed in range(3)}) == 3


def test_an_alarm_in_one_row_changes_no_other(write):
    def one_loops(ids, layout, select, *, cache, start):
        is_loop = (ids[:, :1] == 9).expand_as(ids)[select]
        both = [loops(until=until)(ids, layout, select, cache=cache, start=start) for until in (1000, 0)]
        return torch.where(is_loop[:, None], *both)

    prompts = [torch.tensor([9, 9]), torch.tensor([10, 10])]
    for response in (RemaskSpan(**SHORT), TemperatureKick(**SHORT, increase=9.0)):
        generation = write(prompts, replace(CONFIG, on_loop=response), logits_fn=one_loops)
        assert generation.events[0].alarms
        assert not generation.events[1].alarms
        assert generation.texts()[1] == write(prompts, CONFIG, logits_fn=one_loops).texts()[1]


def test_a_causal_model_cannot_regenerate_blocks():
    for field, value in [("on_loop", RemaskSpan()), ("on_loop", TemperatureKick())]:
        with pytest.raises(UserError, match=f"generation.{field} is set, but the model is causal"):
            generate_autoregressive(
                loops(),
                PROMPT,
                replace(CONFIG, **{field: value}),
                bos_token_id=STOP,
                mask_token_id=MASK,
                stop_token_ids=[STOP],
                max_position_embeddings=64,
            )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RemaskSpan(min_period=0), "generation.on_loop.min_period is 0: it must be 1 or more"),
        (lambda: RemaskSpan(max_period=2), "max_period is 2: it must be at least min_period"),
        (lambda: RemaskSpan(min_cycles=1), "min_cycles is 1: it must be 2 or more"),
        (lambda: RemaskSpan(min_length=0), "min_length is 0"),
        (lambda: RemaskSpan(max_remasks=0), "max_remasks is 0"),
        (lambda: TemperatureKick(increase=0.0), "increase is 0.0: it must be above 0"),
    ],
)
def test_an_invalid_loop_response_is_rejected(make, message):
    with pytest.raises(UserError, match=message):
        make()
