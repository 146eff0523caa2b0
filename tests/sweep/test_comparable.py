"""Arms that validate on different tokens are rejected."""

import pytest

from lit_illada.commands.sweep import resolve
from lit_illada.cost.alignment import step_forwards
from lit_illada.cost.run_cost import step_flops
from lit_illada.errors import UserError
from lit_illada.sweep.library import read_spec
from lit_illada.sweep.plan import Costs, expand


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
