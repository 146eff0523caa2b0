"""Wording of numbers and verdicts."""

import pytest

from lit_illada.stats.comparisons import compare
from lit_illada.stats.intervals import Estimate, estimate
from lit_illada.sweep.report.wording import Unit, amount, p_value, unit_of, verdict


def verdict_of(base, arm, metric="val/nll_bound", *, is_lower_better=True, is_primary=True):
    table = {"base": dict(enumerate(base)), "arm": dict(enumerate(arm))}
    found = compare(table, [("base", "arm")], is_lower_better=is_lower_better, is_primary=is_primary)["base", "arm"]
    return verdict(found, "base", unit_of(metric, [found.difference] if found.difference else []))


def test_counts_of_endless_texts_are_no_percentages():
    assert unit_of("endless_rechecks", []).factor == 1.0
    assert unit_of("endless_in_form", []).factor == unit_of("endless", []).factor == 100.0


def test_units_follow_whole_words_of_a_name():
    for name in ("num_generated_tokens", "moderate", "val/iterations"):  # which contain "rate"
        assert unit_of(name, []).name == ""
    for name in ("val/loop_rate", "val/exact_match_easy", "accuracy_per_byte", "val/accuracy_low"):
        assert unit_of(name, []).name == "%"


def test_a_change_of_accuracy_can_be_negative():
    unit = unit_of("val/accuracy_change", [])
    assert (unit.name, unit.of_difference, unit.factor) == ("points", "points", 100.0)
    assert unit.interval(Estimate(3, -0.05, 0.01, -0.06, -0.04)) == "−6.000 to −4.000"
    assert unit.interval(Estimate(3, -0.9, 0.1, -1.4, -0.4), is_difference=True) == "−140.000 to −40.000"


def test_an_interval_that_ends_at_zero_counts_for_the_decimals():
    at_zero, constant = Estimate(3, -0.005, 0.01, -0.01, 0.0), Estimate(3, 0.5, 0.0, 0.5, 0.5)
    assert unit_of("val/nll_bound", [at_zero]).decimals == 4
    assert unit_of("val/nll_bound", [at_zero, constant, constant]).decimals == 4


@pytest.mark.parametrize(
    ("base", "arm", "sentence"),
    [
        (
            (4.0, 4.2, 4.1),
            (3.88, 4.1, 3.98),
            "better than base by 0.113 nats/token (95\u00a0% interval 0.085 to 0.142, Holm p = 0.003)",
        ),
        (
            (4.0, 4.2, 4.1),
            (4.1, 4.2, 4.25),
            "not separable at 3 seeds",
        ),
        (
            (4.0, 4.0),
            (4.1, 3.9),
            "not separable at 2 seeds",
        ),
        ((4.0,), (3.0,), "one seed in common with base: no interval and no test"),
        ((4.0,), (), "no finished seed in common with base yet"),
        ((4.0, 4.5), (4.0, 4.5), "equal to base at all 2 seeds"),
        (
            (4.0, 4.5),
            (4.25, 4.75),
            "differs from base by 0.250 nats/token at each of 2 seeds: without variance there is no test",
        ),
    ],
)
def test_verdicts(base, arm, sentence):
    assert verdict_of(base, arm) == sentence


def test_fractions_are_percentages_and_their_differences_points():
    sentence = verdict_of((0.5, 0.52, 0.51), (0.6, 0.63, 0.61), "val/exact_match_easy", is_lower_better=False)
    assert sentence.startswith("better than base by 10.3 points (95\u00a0% interval 8.9 to 11.8, ")


def test_seeds_needed_are_a_range():
    values = {"base": [0.0] * 3, "arm": [0.8, 1.0, 1.3], "other": [0.1, -0.2, 0.3], "third": [0.1, 0.2, -0.3]}
    table = {name: dict(enumerate(of_seed)) for name, of_seed in values.items()}
    planned = [("base", "arm"), ("base", "other"), ("base", "third"), *(("base", f"to come {n}") for n in range(60))]
    found = compare(table, planned, is_lower_better=True)
    text = verdict(found["base", "arm"], "base", unit_of("val/nll_bound", []))
    low, high = found["base", "arm"].seeds_needed
    assert text == f"not separable at 3 seeds; {low} to {high} seeds needed for a true difference within its interval"
    assert verdict(found["base", "other"], "base", unit_of("val/nll_bound", [])) == "not separable at 3 seeds"


def test_descriptive_difference_has_an_interval_and_no_verdict():
    text = verdict_of((0.5, 0.52, 0.51), (0.6, 0.63, 0.61), "exact_match", is_primary=False)
    assert text == "+10.3 points (95\u00a0% interval +8.9 to +11.8), descriptive"


def test_decimals_follow_the_uncertainty_and_zero_has_no_sign():
    unit = unit_of("val/nll_bound", [estimate([4.0, 4.001, 4.002])])
    assert unit.decimals == 4
    assert unit_of("val/nll_bound", []).decimals == 3
    assert (unit.difference(-0.00001), unit.difference(-0.01), unit.value(None)) == ("0.0000", "−0.0100", "–")
    assert unit.interval(Estimate(1, 4.0)) == "–"


def test_amounts_and_p_values_are_short():
    assert [amount(x) for x in (None, 0, 950, 4.923e6, 3e21)] == ["–", "0", "950", "4.92 M", "3 Z"]
    assert [p_value(x) for x in (0.0001, 0.0496, 0.31, 1.0)] == ["p < 0.001", "p = 0.050", "p = 0.31", "p = 1.00"]


def test_too_few_seeds_for_any_difference_of_fractions_are_reported():
    text = verdict_of((0.2, 0.4, 0.9), (0.5, 0.2, 0.1), "endless")
    assert text.startswith("not separable at 3 seeds, too few to find any difference of fractions in 1 tests")
    assert "too few" not in verdict_of((0.20, 0.21, 0.22), (0.21, 0.21, 0.21), "endless")
    assert "too few" not in verdict_of((2.0, 4.0, 9.0), (5.0, 2.0, 1.0), "val/nll_bound")


def test_interval_of_a_fraction_stays_within_possible_values():
    unit = Unit("%", "points", 100.0, 1)
    assert unit.interval(Estimate(3, 0.02, 0.1, -0.2, 0.24)) == "0.0 to 24.0"
    assert unit.interval(Estimate(3, -0.9, 0.1, -1.4, -0.4), is_difference=True) == "−100.0 to −40.0"
    assert unit_of("val/nll_bound", []).interval(Estimate(3, 0.0, 0.1, -0.2, 0.2)) == "−0.200 to 0.200"


@pytest.mark.parametrize(
    ("floor", "text"), [(0.00041, "0.0004"), (0.0155, "0.015"), (0.2, "0.200"), (0.0, "0.000"), (None, "–")]
)
def test_a_small_noise_floor_is_not_printed_as_zero(floor, text):
    assert Unit("nats/token", "nats/token", 1.0, 3).noise(floor) == text


def test_a_small_noise_floor_of_percentages_is_not_printed_as_zero():
    assert Unit("%", "points", 100.0, 1).noise(0.0004) == "0.04"
