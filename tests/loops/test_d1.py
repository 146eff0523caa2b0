"""Real generations of LLaDA-8B-Instruct: the rates that were measured on them are found again."""

from functools import cache

import pytest

from lit_illada.loops.compare.summaries import summary
from lit_illada.loops.config import LoopConfig
from lit_illada.loops.outcome import outcome
from lit_illada.loops.records import read_generations


@pytest.fixture(scope="module")
def summed(shared_data):
    @cache
    def of(pattern):
        files = sorted(shared_data("d1_llada_instruct").glob(pattern))
        return summary(pattern, [outcome(item, LoopConfig()) for item in read_generations(files)])

    return of


@pytest.mark.parametrize(
    ("pattern", "num_texts", "exact_runs", "looped_right", "other_right"),
    [
        ("countdown_instruct_128_*.json", 256, 0, None, 0.211),
        ("countdown_instruct_256_*.json", 256, 0.047, 0.25, 0.193),
        ("countdown_instruct_512_*.json", 256, 0.379, 0.144, 0.170),
        ("gsm8k_instruct_512_*.json", 1130, 0.0044, 0.6, 0.793),
    ],
)
def test_rates_equal_the_measured_ones(summed, pattern, num_texts, exact_runs, looped_right, other_right):
    found = summed(pattern)
    assert found.num_texts == num_texts
    assert found.exact_run.share == pytest.approx(exact_runs, abs=0.001)
    assert found.exact_other_right.share == pytest.approx(other_right, abs=0.001)
    if looped_right is None:
        assert found.exact_right.tries == 0
    else:
        assert found.exact_right.share == pytest.approx(looped_right, abs=0.001)


def test_loops_on_a_fixed_canvas_lie_in_the_middle(summed):
    found = summed("countdown_instruct_512_*.json")
    assert found.loop.hits > found.exact_run.hits
    assert found.terminal.hits <= 5
    assert found.forced_closure.share > 0.9
    assert 0.2 < found.wasted < 0.5
