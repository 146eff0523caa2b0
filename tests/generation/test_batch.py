"""Rows of a batch with prompts of different lengths do not influence each other."""

from dataclasses import replace

import pytest
import torch

from lit_illada.batch import Layout
from lit_illada.generation.cache import DualCache, PrefixCache
from lit_illada.generation.commit_rules import Random, Threshold
from lit_illada.generation.config import Canvas, GenerationConfig
from lit_illada.generation.logit_controls import TokenKinds
from lit_illada.generation.loop_control.early_exit import NoExit, Settled
from lit_illada.generation.loop_control.loop_response import NoResponse, RemaskSpan, TemperatureKick
from lit_illada.generation.loop_control.repetition import DRY, NoPenalty, Penalty
from lit_illada.generation.loop_control.thinking_stop import (
    ExponentialRamp,
    HardStop,
    LinearRamp,
    MixtureRamp,
    NoThinkingStop,
)
from lit_illada.generation.remasking import ReMDMConfidence

CONFIG = GenerationConfig(max_new_tokens=12, block_length=6, num_steps=4)
KINDS = {
    "plain": {},
    "fixed": {"canvas": Canvas.fixed},
    "guided": {"guidance_scale": 0.5},
    "threshold": {"commit_rule": Threshold(0.3), "num_steps": 6},
    "random": {"commit_rule": Random(), "seed": 4},
    "hot": {"temperature": 1.0, "top_p": 0.8},
    "remasked": {"remask": ReMDMConfidence(), "num_steps": 10, "seed": 2},
    "prefix": {"cache": PrefixCache(), "canvas": Canvas.fixed},
    "dual": {"cache": DualCache(), "commit_rule": Threshold(0.3), "num_steps": 6, "guidance_scale": 0.5},
}
EAGER = {"min_period": 1, "min_cycles": 2, "min_length": 2}
MITIGATIONS = {
    "linear": {"thinking_stop": LinearRamp(answer_tokens=3, start_tokens=1)},
    "exponential": {"thinking_stop": ExponentialRamp(start_tokens=1, factor=3.0)},
    "mixture": {"thinking_stop": MixtureRamp(answer_tokens=3, start_tokens=1)},
    "hard": {"thinking_stop": HardStop(answer_tokens=4)},
    "penalty": {"repetition": Penalty(5.0)},
    "dry": {"repetition": DRY(9.0, allowed_length=1)},
    "remask_span": {"on_loop": RemaskSpan(**EAGER)},
    "temperature_kick": {"on_loop": TemperatureKick(**EAGER, increase=3.0)},
    "settled": {"early_exit": Settled(threshold=1e9, min_trials=2, answer_tokens=1), "block_length": 3, "num_steps": 3},
}
MITIGATIONS["all"] = {
    **MITIGATIONS["settled"],
    "thinking_stop": MixtureRamp(answer_tokens=3, start_tokens=4, power=3.0),
    "repetition": DRY(0.5),
    "on_loop": RemaskSpan(**EAGER),
}
WAYS = {
    "append": {},
    "fixed": {"canvas": Canvas.fixed},
    "hot": {"temperature": 1.0},
    "cached": {"cache": PrefixCache(), "commit_rule": Threshold(0.3)},
    "remasking": {"remask": ReMDMConfidence(), "num_steps": 8, "temperature": 0.5},
}
TOKENS = TokenKinds(think_close_id=3, unpenalised_ids=[4, 5])


@pytest.mark.parametrize("name", KINDS)
def test_a_row_does_not_depend_on_its_batch(write, ragged, name):
    config = replace(CONFIG, **KINDS[name])
    ragged = [prompt for prompt in ragged if len(prompt)]  # with none, all places tie, and rounding decides
    together = write(ragged, config, stop_token_ids=[1, 2])
    for row, prompt in enumerate(ragged):
        single = write([prompt], config, stop_token_ids=[1, 2], row_numbers=[row])
        assert single.texts()[0] == together.texts()[row]
        assert single.is_stopped[0] == together.is_stopped[row]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MITIGATIONS)
def test_a_row_does_not_depend_on_its_batch_under_any_mitigation(write, ragged, name, way):
    config = replace(CONFIG, **{**MITIGATIONS[name], **WAYS[way]})
    options = {"stop_token_ids": [1, 2], "kinds": TOKENS}
    ragged = [prompt for prompt in ragged if len(prompt)]  # with none, all places tie, and rounding decides
    together = write(ragged, config, **options)
    for row, prompt in enumerate(ragged):
        single = write([prompt], config, **options, row_numbers=[row])
        assert single.texts()[0] == together.texts()[row]
        assert single.events[0] == together.events[row]
    if way == "append":
        off = {"thinking_stop": NoThinkingStop(), "repetition": NoPenalty(), "on_loop": NoResponse()}
        plain = replace(config, **off, early_exit=NoExit())
        assert write(ragged, plain, **options).texts() != together.texts(), "it changes something here"


def test_equal_prompts_in_a_batch_are_drawn_differently(write, prompts):
    texts = write([prompts[0]] * 3, replace(CONFIG, temperature=2.0)).texts()
    assert len(set(map(tuple, texts))) == 3


def test_padding_has_no_effect(model, ragged):
    ids = torch.stack([torch.nn.functional.pad(prompt, (9 - len(prompt), 0), value=3) for prompt in ragged])
    layout = Layout.left_padded([9 - len(prompt) for prompt in ragged], 9)
    logits, other = model(ids, layout), model(torch.where(ids == 3, 4, ids), layout)
    for row, prompt in enumerate(ragged):
        text = slice(9 - len(prompt), 9)
        if not (prompt == 3).any():
            torch.testing.assert_close(logits[row, text], other[row, text])
        single = model(prompt[None], Layout.whole_rows(1, len(prompt))) if len(prompt) else logits[row, text][None]
        torch.testing.assert_close(logits[row, text], single[0], atol=1e-5, rtol=1e-5)
