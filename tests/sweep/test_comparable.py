"""Arms that validate on different tokens are rejected."""

import copy

import pytest

from lit_illada.commands.sweep import resolve
from lit_illada.config import AlignConfig, PretrainConfig, SFTConfig
from lit_illada.cost.alignment import step_forwards
from lit_illada.cost.run_cost import step_flops
from lit_illada.errors import UserError
from lit_illada.schema import to_tree
from lit_illada.sweep.comparable import check_comparable
from lit_illada.sweep.library import read_spec
from lit_illada.sweep.plan import Costs, expand, set_in
from lit_illada.sweep.spec import Arm, Command, Metric, Stage, SweepSpec


@pytest.fixture
def plan(tiny_sweep):
    def plan(metric, *overrides):
        arms = [
            {"name": "a", "overrides": {"pretrain": ["optim.optimizer.learning_rate=0.01"]}},
            {"name": "b", "overrides": {"pretrain": list(overrides)}},
        ]
        file = tiny_sweep(baseline="a", metrics=[{"name": metric, "stage": "pretrain"}], arms=arms)
        return expand(read_spec(str(file)), resolve, Costs(step_flops, step_forwards))

    return plan


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.row_length=16", r"data.row_length: \d+, 16"),
        ("trainer.val_rows=3", r"trainer.val_rows: \d+, 3"),
        ("trainer.val_draws=5", r"trainer.val_draws: \d+, 5"),
        ("data.isolate_documents=false", r"data.isolate_documents: True, False"),
        ("data.validation_fraction=0.3", r"data.validation_fraction: 0\.\d+, 0.3"),
    ],
)
@pytest.mark.parametrize("metric", ["val/nll_bound", "val/bits_per_byte"])
def test_arms_with_different_validation_tokens_are_rejected(plan, metric, override, message):
    with pytest.raises(
        UserError, match=f"{metric} of stage 'pretrain' cannot rank arms 'a' and 'b'.*{message}"
    ) as error:
        plan(metric, override)
    assert "\n" not in str(error.value)


def test_tokenizers_are_compared_only_in_bits_per_byte(plan):
    with pytest.raises(UserError, match=r"val/nll_bound .*data.tokenizer"):
        plan("val/nll_bound", "data.tokenizer.vocab_size=512")
    plan("val/bits_per_byte", "data.tokenizer.vocab_size=512")


def test_other_settings_and_other_metrics_may_vary(plan):
    plan("val/nll_bound", "trainer.batch_rows=2", "trainer.micro_batch_rows=2", "data.shortening.probability=0.1")
    plan("perf/tokens_per_s", "data.row_length=16")


@pytest.fixture
def check():
    """Check a metric of one stage for two arms: one with the defaults of the command, one with changes."""

    def check(command, metric, **changes):
        tree = to_tree({"sft": SFTConfig, "align": AlignConfig, "pretrain": PretrainConfig}[command]())
        other = copy.deepcopy(tree)
        for key, value in changes.items():
            set_in(other, key.replace("__", "."), value)
        stages = [Stage(command, Command(command))]
        spec = SweepSpec("?", "a", [Metric(metric, command)], stages, arms=[Arm("a"), Arm("b")])
        check_comparable(spec, {"a": {command: tree}, "b": {command: other}})

    return check


@pytest.mark.parametrize(
    ("command", "metric", "changes"),
    [
        ("sft", "val/exact_match_easy", {"sft_data__source": {"name": "task"}}),
        ("sft", "val/exact_match_harder", {"sft_data__template": {"name": "chatml"}}),
        ("sft", "val/exact_match_easy", {"sft_data__validation_fraction": 0.3}),
        ("sft", "val/exact_match_easy", {"evaluation__num_examples": 7}),
        ("sft", "val/some_metric", {"trainer__val_rows": 7}),
        ("align", "val/accuracy", {"task": {"name": "countdown"}}),
        ("align", "val/accuracy_change", {"task": {"name": "countdown"}}),
        ("align", "val/accuracy_depth_4", {"problems": {"seed": 9}}),
        ("align", "val/margin", {"preferences": "pairs.jsonl"}),
        ("align", "val/mismatch", {"trainer__val_rows": 7}),
        ("pretrain", "val/nll_bound_stderr", {"data__row_length": 16}),
    ],
)
def test_every_validation_metric_needs_the_same_problems(check, command, metric, changes):
    with pytest.raises(UserError, match=f"{metric} of stage '{command}' cannot rank arms 'a' and 'b'"):
        check(command, metric, **changes)


def test_exact_match_does_not_depend_on_the_rows_of_the_bound(check):
    check("sft", "val/exact_match_easy", trainer__val_rows=7, sft_data__row_length=64)
    with pytest.raises(UserError, match="which validate on different problems"):
        check("sft", "val/exact_match_easy", evaluation__num_examples=7)
