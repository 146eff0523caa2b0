"""What makes texts endless: laws of intervals and verdicts, against slow references and simulation."""

import random
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t, ttest_1samp

from lit_illada.errors import UserError
from lit_illada.loops.compare import comparisons
from lit_illada.loops.compare.comparisons import check_pairs, effects
from lit_illada.loops.compare.effects import LEVEL, natural, rises
from lit_illada.loops.config import LoopConfig
from lit_illada.loops.outcome import outcome
from lit_illada.loops.records import Generation
from lit_illada.stats.intervals import difference_variance, mean_over_seeds
from lit_illada.stats.tests import mcnemar, paired_variance


def differences(outcomes, keys, pairs=None):
    found, _ = comparisons.differences(outcomes, keys, pairs)
    return found


@dataclass
class Endless:
    """As much of an outcome as its groups' effects need."""

    prompt: str
    groups: dict
    is_endless: bool
    is_right: bool | None = None
    length: int = 0

    @property
    def generation(self):
        return self

    @property
    def findings(self):
        return self


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


def test_difficulty_compares_the_lowest_and_highest_numbered_level():
    base, ramp, block = rises(experiment(RATES, seeds=6), ["arm", "level"])
    assert (base.where, base.first, base.second) == ("base", "depth_2", "depth_12")
    assert (base.first_rate.share, base.verdict) == (0, "more")
    assert base.low <= np.mean(list(base.by_seed.values())) == pytest.approx(base.difference)
    assert ramp.difference < base.difference
    assert set(block.by_seed) == set("012345")


def test_conditions_compare_on_the_same_problems():
    found = {(item.first, item.second): item for item in differences(experiment(RATES, seeds=6), ["arm", "level"])}
    # in the order of the files; no problem has two depths
    assert list(found) == [("base", "ramp"), ("base", "block 4"), ("ramp", "block 4")]
    ramp = found["base", "ramp"]
    assert (ramp.paired.num_pairs, ramp.paired.only_second, ramp.verdict) == (240, 0, "fewer")
    assert ramp.difference == pytest.approx(-ramp.paired.only_first / 240)
    null = found["base", "block 4"]
    assert null.verdict == "not separable"
    assert null.low <= 0 <= null.high


def test_beyond_four_values_each_is_compared_with_the_first():
    rates = {(f"arm {n}", "depth_2"): 0.3 for n in (3, 1, 2, 4, 5)}
    found = differences(experiment(rates), ["arm"])
    assert [(item.first, item.second) for item in found] == [("arm 3", f"arm {n}") for n in (1, 2, 4, 5)]
    assert {item.verdict for item in found} == {"not separable"}


def test_the_first_given_value_is_the_reference():
    for arms in (["none", "hard stop"], ["hard stop", "none"]):
        (found,) = differences(experiment({(arm, "depth_2"): 0.3 for arm in arms}), ["arm"])
        assert [found.first, found.second] == arms
    lengths = [Endless("p", {"length": length, "seed": "0"}, False) for length in ("512", "1024", "128")]
    pairs = [(item.first, item.second) for item in differences(lengths, ["length"])]
    assert pairs == [("128", "512"), ("128", "1024"), ("512", "1024")]


def test_only_requested_pairs_are_compared():
    rates = {(f"arm {n}", "depth_2"): 0.1 * n for n in range(6)}
    texts = experiment(rates, seeds=6)
    pairs = [("arm 4", "arm 1"), ("arm 0", "arm 5")]
    found = effects(texts, ["arm", "level"], pairs).same
    assert [(item.first, item.second) for item in found] == pairs
    usual = {(item.first, item.second): item for item in differences(texts, ["arm"])}
    assert found[1].difference == usual["arm 0", "arm 5"].difference > 0.2
    assert found[1].p_value < usual["arm 0", "arm 5"].p_value  # corrected for fewer


def test_missing_planned_comparisons_make_no_verdict_easier():
    rates = {("none", "depth_2"): 0.6, ("stop", "depth_2"): 0.1, ("ramp", "depth_2"): 0.2}
    planned = [("none", "stop"), ("none", "ramp"), ("stop", "ramp")]
    whole = effects(experiment(rates, seeds=6), ["arm"], planned)
    del rates["ramp", "depth_2"]
    part = effects(experiment(rates, seeds=6), ["arm"], planned)
    assert [item.second for item in part.same] == ["stop"]
    assert part.same[0].p_value >= whole.same[0].p_value > 0
    assert part.remarks == [
        "none and ramp are not compared: there is no text of ramp",
        "stop and ramp are not compared: there is no text of ramp",
    ]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("base", "rump")], r"group to compare 'rump'.*did you mean 'ramp'"),
        ([("base", "depth_2")], "of different fields"),
        ([("base", "base")], "got base and base"),
        ([("base", "ramp"), ("ramp", "base")], "each pair once; got ramp and base"),
    ],
)
def test_a_pair_that_cannot_be_compared_is_refused(pairs, message):
    with pytest.raises(UserError, match=message):
        check_pairs(pairs, experiment(RATES), ["arm", "level"])


def of_arm(arm, prompts, **groups):
    return [Endless(prompt, {"arm": arm, **groups}, False, True) for prompt in prompts]


@pytest.mark.parametrize(
    ("second", "num_compared", "remarks"),
    [
        (of_arm("b", "xyz"), 2, []),
        (of_arm("b", "vw"), 0, ["a and b are not compared: none of their prompts is in both (2 and 2)"]),
        (of_arm("b", [None]), 0, ["a and b are not compared: the texts of one of them name no prompt"]),
        (of_arm("b", "xy", length="512"), 2, ["a and b differ in length too: – and 512"]),
        (
            [*of_arm("b", "x", seed="0"), *of_arm("b", "x", seed="1")],
            0,
            ["a and b are not compared: their seed differs (–; 0, 1)"],
        ),
    ],
)
def test_a_requested_pair_is_compared_or_a_remark_gives_the_reason(second, num_compared, remarks):
    found = effects([*of_arm("a", "xy"), *second], ["arm"], [("a", "b")])
    assert sum(item.paired.num_pairs for item in found.same) == num_compared
    assert found.remarks == remarks


def test_harmed_and_healed_count_texts_judged_under_both_conditions():
    kinds = [  # (endless, right) under each, and how many such problems
        ((False, True), (False, False), 3),  # harmed
        ((False, True), (True, True), 2),
        ((False, True), (False, None), 4),
        ((True, False), (False, True), 5),  # healed
        ((True, False), (True, False), 1),
        ((True, None), (False, True), 6),
        ((True, True), (False, False), 7),  # neither: it was right, though endless
    ]
    texts = [
        Endless(f"{kind} {n}", {"arm": arm}, *text)
        for kind, (*both, count) in enumerate(kinds)
        for n in range(count)
        for arm, text in zip("ab", both, strict=True)
    ]
    (found,) = differences(texts, ["arm"])
    cost = found.side_effects
    assert (cost.harmed.hits, cost.harmed.tries) == (3, 5)
    assert (cost.healed.hits, cost.healed.tries) == (5, 6)
    assert (cost.first_right.hits, cost.second_right.hits, cost.first_right.tries) == (12, 7, 18)
    assert cost.right.value == pytest.approx(-5 / 18)


TEXT = st.tuples(st.booleans(), st.sampled_from([True, False, None]), st.integers(0, 300))


@given(st.lists(st.tuples(st.integers(0, 2), TEXT, TEXT), min_size=1, max_size=40))
def test_side_effects_are_counted_on_the_same_problems(problems):
    texts = [
        Endless(f"problem {n}", {"arm": arm, "seed": str(seed)}, *text)
        for arm in "ab"
        for n, (seed, *both) in enumerate(problems)
        for text in [both["ab".index(arm)]]
    ]
    (found,) = differences(texts, ["arm"])
    cost = found.side_effects
    judged = [(one[1], other[1]) for _, one, other in problems if None not in (one[1], other[1])]
    assert (cost.first_right.hits, cost.first_right.tries) == (sum(one for one, _ in judged), len(judged))
    assert (cost.second_right.hits, cost.second_right.tries) == (sum(other for _, other in judged), len(judged))
    assert cost.first_length == pytest.approx(np.mean([one[2] for _, one, _ in problems]))
    assert cost.second_length == pytest.approx(np.mean([other[2] for _, _, other in problems]))
    if not judged:
        assert cost.right is None
        return
    of_seed = {
        seed: [b[1] - a[1] for at, a, b in problems if at == seed and None not in (a[1], b[1])] for seed in range(3)
    }
    assert cost.right.value == pytest.approx(np.mean([np.mean(both) for both in of_seed.values() if both]))
    assert -1 <= cost.right.low <= cost.right.value <= cost.right.high <= 1


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


@pytest.mark.parametrize("num_seeds", [1, 2, 3, 6])
def test_without_a_true_difference_verdicts_are_as_rare_as_stated(num_seeds):
    """Arms of equal expectation; where there are several models, each has an inclination of its own."""
    rng = random.Random(num_seeds)
    num_false = 0
    for _ in range(800):
        own = {folder: rng.random() if num_seeds > 1 else 0.5 for folder in product("ab", map(str, range(num_seeds)))}
        texts = [
            Endless(f"problem {n}", {"arm": arm, "seed": seed}, rng.random() < share)
            for (arm, seed), share in own.items()
            for n in range(24)
        ]
        (found,) = differences(texts, ["arm"])
        num_false += found.verdict != "not separable"
    # four standard errors of 800 draws above the level
    assert num_false / 800 <= LEVEL + 4 * np.sqrt(LEVEL * (1 - LEVEL) / 800)


def test_many_comparisons_are_corrected_together():
    """Of eleven conditions without an effect on 24 problems one seldom gets a verdict; uncorrected, often."""
    rng = random.Random(1)
    arms, num_false = [f"arm {n}" for n in range(12)], 0
    for _ in range(100):
        texts = [Endless(f"{n}", {"arm": arm, "seed": "0"}, rng.random() < 0.5) for arm in arms for n in range(24)]
        num_false += any(found.verdict != "not separable" for found in differences(texts, ["arm"]))
    assert num_false <= 11


def test_a_single_text_gives_no_verdict():
    texts = [Endless("p", {"arm": "a"}, False), Endless("p", {"arm": "b"}, True)]
    (found,) = differences(texts, ["arm"])
    assert (found.difference, found.verdict) == (1, "not separable")
    assert found.low < 0


def test_a_single_seed_among_comparisons_of_several_gets_no_verdict():
    def texts(arm, seeds, share):
        return [Endless(f"{n}", {"arm": arm, "seed": seed}, n < share * 24) for seed in seeds for n in range(24)]

    a, b, c = texts("a", "0123", 0), texts("b", "0123", 1), texts("c", "0", 1)
    found = {effect.second: effect for effect in differences(a + b + c, ["arm"]) if effect.first == "a"}
    assert (found["b"].verdict, found["c"].verdict) == ("more", "one seed")
    (alone,) = differences(a[:24] + c, ["arm"])
    assert alone.verdict == "more"


def test_levels_without_a_common_seed_are_not_compared():
    texts = [Endless("p", {"level": "2", "seed": "0"}, False), Endless("q", {"level": "20", "seed": "1"}, True)]
    assert rises(texts, ["level"]) == []


def test_paired_texts_agree_in_all_other_fields():
    """Two conditions that agree at every length, in files of another order."""
    at = [(arm, length) for arm in "ab" for length in (("128", "512") if arm == "a" else ("512", "128"))]
    texts = [Endless("p", {"arm": arm, "length": length, "file": arm}, length == "512") for arm, length in at]
    (found,) = differences(texts, ["arm"])
    assert (found.difference, found.paired.num_pairs) == (0, 2)


def slow_t_interval(values):
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return np.mean(values) - half, np.mean(values) + half


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
def test_the_interval_over_differing_seeds_equals_students(values):
    found = mean_over_seeds(values, [1e-12] * len(values))
    assert (found.low, found.high) == pytest.approx(slow_t_interval(values), abs=1e-5)
    if np.std(values) > 1e-3:
        assert found.p_value == pytest.approx(ttest_1samp(values, 0).pvalue, rel=1e-6, abs=1e-12)


def test_sampling_variance_is_a_floor_of_the_variance_over_seeds():
    found = mean_over_seeds([0.5, 0.5, 0.5], [0.01, 0.01, 0.01])
    assert found.high - found.value == pytest.approx(t.ppf(0.975, 2) * 0.1 / np.sqrt(3))


@pytest.mark.parametrize(("share", "other"), [(0.0, 0.1), (0.3, 0.3), (0.5, 0.9)])
def test_variances_equal_those_of_many_samples(share, other):
    """Of 200 texts each, where the added hits and misses weigh little."""
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 4000, 200)) < np.array([share, other])[:, None, None]
    seen = (second.mean(1) - first.mean(1)).var()
    samples = list(zip(first[:200].tolist(), second[:200].tolist(), strict=True))
    assert np.mean([difference_variance(*both) for both in samples]) == pytest.approx(seen, rel=0.15)
    paired = [paired_variance(mcnemar(list(zip(*both, strict=True)))) for both in samples]
    assert np.mean(paired) == pytest.approx(seen, rel=0.15)


@pytest.mark.parametrize(("share", "other", "is_opposite"), [(0.3, 0.3, False), (0.5, 0.6, False), (0.3, 0.3, True)])
def test_the_paired_variance_follows_the_correlation_of_the_pairs(share, other, is_opposite):
    """60 % of the pairs share their random number, or one is the other's opposite: less variance, or more."""
    rng = np.random.default_rng(0)
    one, own = rng.random((2, 2000, 200))
    shared = np.where(rng.random(one.shape) < 0.6, 1 - one if is_opposite else one, own)
    first, second = one < share, shared < other
    seen = (second.mean(1) - first.mean(1)).var()
    samples = list(zip(first[:100].tolist(), second[:100].tolist(), strict=True))
    paired = np.mean([paired_variance(mcnemar(list(zip(*both, strict=True)))) for both in samples])
    apart = np.mean([difference_variance(*both) for both in samples])
    assert paired == pytest.approx(seen, rel=0.12)
    assert apart < 0.8 * seen if is_opposite else apart > 1.5 * seen
