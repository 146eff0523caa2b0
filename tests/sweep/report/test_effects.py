"""Effects beside the noise floor, and at half of the budget."""

import csv
import math
from types import SimpleNamespace

import pytest

from lit_illada.stats.comparisons import Finding
from lit_illada.sweep.design import describe
from lit_illada.sweep.report import effects as effects_module
from lit_illada.sweep.report import write_report
from lit_illada.sweep.report.collect import collect
from lit_illada.sweep.report.effects import noise_floor
from lit_illada.sweep.report.findings import find

VALUES = {
    "a": {0: 4.30, 1: 4.52, 2: 4.41, 3: 4.37},
    "b": {0: 4.291, 1: 4.510, 2: 4.401, 3: 4.359},
    "c": {0: 4.102, 1: 4.324, 2: 4.208, 3: 4.171},
}
COPIES = {"a, rounding 1": {0: 4.32}, "a, rounding 2": {1: 4.48}}


def swept(make_sweep, copies, **more):
    number = {"noise_floor": {"replicates": 2}} if copies else {}
    settings = {"equivalence_margin": 0.1, "primary_contrasts": ["b"], **number, **more}
    return make_sweep(VALUES, seeds=tuple(range(4)), copies=copies, **settings)


def test_noise_floor_pools_the_spread_within_seeds(make_sweep):
    sweep = collect(swept(make_sweep, COPIES).path)
    floor = noise_floor(sweep, sweep.spec.metrics[0])
    assert floor.by_seed == {0: [4.30, 4.32], 1: [4.52, 4.48]}
    # with one copy per seed, the root mean square of the differences
    assert floor.size == pytest.approx(math.sqrt((0.02**2 + 0.04**2) / 2))


def test_a_replicate_that_ends_with_nan_leaves_the_noise_floor_to_the_others(make_sweep):
    copies = {"a, rounding 1": {0: 4.32}, "a, rounding 2": {1: math.nan}}
    sweep = collect(swept(make_sweep, copies).path)
    floor = noise_floor(sweep, sweep.spec.metrics[0])
    assert floor.by_seed == {0: [4.30, 4.32]}
    assert find(sweep, sweep.spec.metrics[0]).of("b").comparison.finding is Finding.BELOW_NOISE


def test_no_effect_below_the_noise_floor_gets_a_verdict(make_sweep):
    """b is 0.01 below a at every seed: without the floor, better."""
    without = collect(swept(make_sweep, {}).path)
    finding = find(without, without.spec.metrics[0])
    assert finding.noise is None
    assert finding.of("b").comparison.finding is Finding.BETTER

    sweep = collect(swept(make_sweep, COPIES).path)
    finding = find(sweep, sweep.spec.metrics[0])
    assert finding.of("b").comparison.finding is Finding.BELOW_NOISE
    assert "less than rounding alone changes a run" in finding.of("b").verdict
    assert finding.of("c").comparison.finding is Finding.BETTER
    first, second = finding.effects
    assert (first.arm, first.verdict) == ("b", "equivalent")
    assert (second.arm, second.verdict) == ("c", "better")


def test_of_two_validations_equally_near_to_the_half_the_earlier_one_counts():
    def record(*values):
        curve = SimpleNamespace(steps=[20, 40, 60, 80, 100], values=list(values))
        return SimpleNamespace(curves={"loss": curve}, num_steps=100, figures={"loss": values[-1]})

    records = {0: record(0.9, 0.3, 0.5, 0.2, 0.1), 1: record(0.9, 0.52, 0.48, 0.2, 0.1)}
    assert effects_module._at_half(records, "loss") == {0: 0.3, 1: 0.52}


def test_effects_are_tabulated_at_half_and_full_budget(make_sweep):
    folder = swept(make_sweep, COPIES)
    write_report(folder.path)
    with (folder.report / "effects.csv").open(encoding="utf-8") as lines:
        rows = {row["arm"]: row for row in csv.DictReader(lines)}
    row = rows["c"]
    assert float(row["effect"]) == pytest.approx(-0.19875)
    # the curves of the fixture approach their end as 1 − exp(−step/12), and half is step 30 of 60
    assert float(row["half_effect"]) == pytest.approx(-0.19875 * (1 - math.exp(-30 / 12)), rel=1e-4)
    assert float(row["half_low_95"]) < float(row["half_effect"]) < float(row["half_high_95"])
    assert row["direction_stable"] == "yes"
    assert row["num_replicates"] == "2"
    assert float(row["smallest_effect"]) == 0.1
    assert float(row["power"]) > 0.8
    page = (folder.report / "index.html").read_text(encoding="utf-8")
    assert "from 2 replicates" in page
    assert "primary contrast" in page


def test_direction_that_changes_is_shown(make_sweep):
    folder = swept(make_sweep, {})
    sweep = collect(folder.path)
    for record in sweep.records:
        if record.run.arms == ["c"]:
            curve = record.curves["val/nll_bound"]
            curve.values[curve.steps.index(30)] += 1.0
    finding = find(sweep, sweep.spec.metrics[0])
    assert {effect.arm: effect.is_direction_stable for effect in finding.effects} == {"b": True, "c": False}


def test_primary_contrasts_are_tested_first(make_sweep):
    """c differs clearly from a; b, the primary contrast, hides in noise of its own or differs as clearly."""
    noisy = {**VALUES, "b": {0: 4.35, 1: 4.47, 2: 4.46, 3: 4.32}}
    for values, finding, other in (
        (VALUES, Finding.BETTER, Finding.BETTER),
        (noisy, Finding.NOT_SEPARABLE, Finding.NOT_TESTED),
    ):
        folder = make_sweep(values, seeds=tuple(range(4)), primary_contrasts=["b"])
        sweep = collect(folder.path)
        found = find(sweep, sweep.spec.metrics[0])
        assert [found.of(arm).comparison.finding for arm in "bc"] == [finding, other]
        assert [found.of(arm).comparison.num_comparisons for arm in "bc"] == [1, 1]
    alike = collect(make_sweep(noisy, seeds=tuple(range(4))).path)
    assert find(alike, alike.spec.metrics[0]).of("c").comparison.finding is Finding.BETTER


@pytest.mark.parametrize(
    ("primary", "text"),
    [
        ([], "corrected for 2 comparisons (Holm)"),
        (["b"], "the primary contrast first, the other comparison only if its p is at most 0.05"),
        (["b", "c"], "corrected for 2 comparisons (Holm)"),
    ],
)
def test_the_design_says_what_is_corrected(make_sweep, primary, text):
    spec = collect(make_sweep(VALUES, seeds=(0, 1, 2, 3), primary_contrasts=primary).path).spec
    assert text in describe(spec)["test"]


def test_a_check_of_equal_objectives_does_not_wait_for_the_primary_contrast(make_sweep):
    """b, the primary contrast, is noise; c, whose objective equals that of a in expectation, differs clearly."""
    noisy = {**VALUES, "b": {0: 4.35, 1: 4.47, 2: 4.46, 3: 4.32}}
    sweep = collect(
        make_sweep(noisy, seeds=tuple(range(4)), primary_contrasts=["b"], equal_in_expectation=[["a", "c"]]).path
    )
    finding = find(sweep, sweep.spec.metrics[0])
    assert finding.of("c").comparison.finding is Finding.NOT_TESTED
    assert "primary contrasts come first" in finding.of("c").verdict
    (check,) = finding.checks
    assert check.is_passed is False
    assert "yet they differ" in check.text
