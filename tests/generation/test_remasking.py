import pytest
import torch

from lit_illada.errors import UserError
from lit_illada.generation.draws import Draws
from lit_illada.generation.remasking import REMASK_RULES, ReMDMCap, ReMDMConfidence, ReMDMRescale

CPU = torch.device("cpu")
ROWS = 4000


def rate(rule, steps_left, num_steps, confidence=(0.2, 0.9), is_written=(True, True, False)):
    confidence = torch.tensor([*confidence, 0.5], dtype=torch.float64).expand(ROWS, 3)
    draws = Draws(0, range(ROWS), CPU).of(range(ROWS))
    is_remasked = rule(confidence, torch.tensor(is_written).expand(ROWS, 3), steps_left, num_steps, draws)
    assert not is_remasked[:, 2].any()
    return is_remasked.double().mean(0)[:2]


@pytest.mark.parametrize("name", REMASK_RULES)
def test_neither_the_last_step_nor_an_empty_block_remasks(name):
    rule = REMASK_RULES[name]()
    assert rate(rule, 1, 10).eq(0).all()
    assert rate(rule, 10, 10, is_written=(False, False, False)).eq(0).all()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (ReMDMCap(0.25), [0.25, 0.25]),
        (ReMDMCap(0.9), [0.2857, 0.2857]),
        (ReMDMRescale(0.5), [0.1429, 0.1429]),
    ],
)
def test_the_rates_are_the_papers(rule, expected):
    """With 3 of 10 steps left t = 0.3 and s = 0.2: at most 0.2 / 0.7."""
    torch.testing.assert_close(rate(rule, 3, 10), torch.tensor(expected).double(), atol=0.025, rtol=0)


def test_less_confident_tokens_are_remasked_more_often():
    share = torch.tensor([-0.2, -0.9]).softmax(-1).double()
    torch.testing.assert_close(rate(ReMDMConfidence(), 3, 10), share * 0.2 / 0.7, atol=0.025, rtol=0)


def test_an_invalid_rate_is_rejected():
    with pytest.raises(UserError, match="eta is 0: it must be above 0"):
        ReMDMCap(0)
