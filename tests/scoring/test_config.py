"""The scoring config: its file, and its refusals."""

import pytest

from lit_illada.config import ScoreConfig, load
from lit_illada.data.sft.config import ReasoningTask
from lit_illada.errors import UserError
from lit_illada.scoring.config import DIFFUSION_RULES, WORDINGS, ScoreRule, ScoringConfig


def test_composed_config_is_the_default():
    assert load("score") == ScoreConfig()


def test_all_means_every_rule_that_the_model_supports():
    assert ScoringConfig().rules(is_causal=False) == DIFFUSION_RULES
    assert ScoringConfig().rules(is_causal=True) == (ScoreRule.EXACT,)
    assert ScoringConfig(rule=ScoreRule.CONFIDENCE).rules(is_causal=False) == (ScoreRule.CONFIDENCE,)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_draws", 1, "num_draws is 1; it must be 2 or more"),
        ("batch_tokens", 0, "batch_tokens is 0"),
        ("window_length", 0, "window_length is 0"),
        ("context_length", -1, "context_length is -1"),
        ("limit", 0, "limit is 0"),
        ("batch_prompts", 0, "batch_prompts is 0"),
    ],
)
def test_values_out_of_range_are_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        ScoringConfig(**{field: value})


@pytest.mark.parametrize("wording", WORDINGS.values())
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", "Question:", r"it must contain \{question\}"),
        ("choice", "{}", r"it must contain \{choice\}"),
        ("stop_texts", [""], "stop_texts contains an empty text"),
    ],
)
def test_wordings_without_placeholder_are_refused(wording, field, value, message):
    with pytest.raises(UserError, match=message):
        wording(**{field: value})


@pytest.mark.parametrize("name", WORDINGS)
def test_every_wording_has_a_file_with_its_defaults(name):
    assert load("score", [f"score/wording={name}"]).score.wording == WORDINGS[name]()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("depths", [], "reasoning.depths is empty"),
        ("depths", [0], "min_depth is 0"),
        ("num_problems", 0, "num_problems is 0"),
        ("held_out_fraction", 0.5, "held_out_fraction is 0.5"),
        ("max_numbers", [3, 10], r"max_numbers is \[10\]; each must lie in 1 … 9"),
    ],
)
def test_impossible_problem_settings_are_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        ReasoningTask(**{field: value})
