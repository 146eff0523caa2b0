"""What makes texts endless: laws of the intervals, against slow references, and what a reader sees."""

import random
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_illada.loops.config import LoopConfig
from lit_illada.loops.effects import differences, natural, rises
from lit_illada.loops.outcome import outcome
from lit_illada.loops.records import Generation
from lit_illada.loops.statistics import cluster_draws


def written(arm, seed, level, number, *, is_finished):
    groups = {"arm": arm, "level": level, "seed": str(seed)}
    text = f"The sum is {number} and there is no more to say about it."
    return outcome(
        Generation("f", number, text, f"{level} {number}", is_finished=is_finished, groups=groups), LoopConfig()
    )


def experiment(rates, *, num=20, seeds=3):
    """The arms' shares of unfinished texts by level, the same problems in every arm."""
    rng = random.Random(0)
    chance = {
        (seed, level, n): rng.random() for seed in range(seeds) for level in ("depth_2", "depth_12") for n in range(num)
    }
    return [
        written(arm, seed, level, n, is_finished=draw >= share)
        for (arm, level), share in rates.items()
        for (seed, of, n), draw in chance.items()
        if of == level
    ]


RATES = {
    ("base", "depth_2"): 0.0, ("base", "depth_12"): 0.6, ("ramp", "depth_2"): 0.0, ("ramp", "depth_12"): 0.1,
    ("block 4", "depth_2"): 0.02, ("block 4", "depth_12"): 0.6,
}  # fmt: skip


def test_a_rise_is_from_the_easiest_to_the_hardest_level_by_number():
    base, ramp, block = rises(experiment(RATES), ["arm", "level"])
    assert (base.where, base.first, base.second) == ("base", "depth_2", "depth_12")
    assert (base.first_rate.share, base.verdict) == (0, "more")
    assert base.low <= np.mean(list(base.by_seed.values())) == pytest.approx(base.difference)
    assert ramp.difference < base.difference
    assert set(block.by_seed) == {"0", "1", "2"}


def test_conditions_compare_on_the_same_problems():
    found = {(item.first, item.second): item for item in differences(experiment(RATES), ["arm", "level"])}
    assert set(found) == {("base", "block 4"), ("base", "ramp"), ("block 4", "ramp")}  # no problem has two depths
    ramp = found["base", "ramp"]
    assert (ramp.paired.num_pairs, ramp.paired.only_second, ramp.verdict) == (120, 0, "fewer")
    assert ramp.difference == pytest.approx(-ramp.paired.only_first / 120)
    null = found["base", "block 4"]
    assert null.verdict == "not separable"
    assert null.low <= 0 <= null.high


def test_beyond_four_values_each_is_compared_with_the_first():
    rates = {(f"arm {n}", "depth_2"): 0.3 for n in (3, 1, 2, 4, 5)}
    found = differences(experiment(rates), ["arm"])
    assert [(item.first, item.second) for item in found] == [("arm 3", f"arm {n}") for n in (1, 2, 4, 5)]
    assert {item.verdict for item in found} == {"not separable"}


def test_levels_without_numbers_have_no_order():
    rates = {("base", "depth_2"): 0.0, ("base", "depth_12"): 0.6}
    outcomes = experiment(rates)
    for item in outcomes:
        item.generation.groups["level"] = {"depth_2": "kind", "depth_12": "cruel"}[item.generation.groups["level"]]
    assert rises(outcomes, ["level"]) == []
    assert rises(outcomes, ["arm"]) == []


@pytest.mark.parametrize(
    "texts", [["depth_2", "depth_8", "depth_12"], ["0", "0.25", "0.5", "1", "10"], ["a", "a 1", "b"]]
)
def test_numbers_sort_by_size(texts):
    shuffled = random.Random(0).sample(texts, len(texts))
    assert sorted(shuffled, key=natural) == texts


@settings(max_examples=8)
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=2), min_size=1, max_size=2))
def test_draws_have_the_distribution_of_all_that_could_be_drawn(clusters):
    """Against every outcome listed: clusters with replacement, then values within them."""
    means = []
    weights = []
    for chosen in product(range(len(clusters)), repeat=len(clusters)):
        options = [list(product(clusters[c], repeat=len(clusters[c]))) for c in chosen]
        for drawn in product(*options):
            values = [value for sample in drawn for value in sample]
            means.append(np.mean(values))
            weights.append(1 / len(clusters) ** len(clusters) / np.prod([len(of) for of in options]))
    draws = cluster_draws([(values,) for values in clusters], num_draws=20_000)[:, 0]
    for edge in np.linspace(-0.05, 1.05, 7):
        expected = sum(weight for mean, weight in zip(means, weights, strict=True) if mean <= edge)
        assert (draws <= edge).mean() == pytest.approx(expected, abs=0.02)


def test_samples_of_a_cluster_are_drawn_together():
    clusters = [([0.0] * 5, [0.0] * 3), ([1.0] * 5, [1.0] * 3)]
    draws = cluster_draws(clusters, num_draws=500)
    assert draws[:, 0] - draws[:, 1] == pytest.approx(0, abs=1e-12)
    assert 0 < draws[:, 0].mean() < 1
