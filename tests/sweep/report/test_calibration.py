"""Calibration of a planned contrast from a pilot, and its entry in the plan."""

import pytest
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.errors import UserError
from lit_illada.runtime.paths import sweeps_dir
from lit_illada.stats.power import seeds_needed
from lit_illada.sweep.report.calibration import _noise_line, calibrate, write_calibration
from lit_illada.sweep.report.effects import NoiseFloor
from lit_illada.sweep.report.wording import unit_of

# paired differences of b: 0.1, 0.2, 0.3 and 0.4, whose standard deviation is 0.129
VALUES = {"a": {0: 4.0, 1: 4.0, 2: 4.0, 3: 4.0}, "b": {0: 4.1, 1: 4.2, 2: 4.3, 3: 4.4}}
SETTINGS = {"equivalence_margin": 0.3, "primary_contrasts": ["b"], "noise_floor": {"replicates": 1}}


@pytest.fixture
def pilot(make_sweep):
    def pilot(**changes):
        copies = {"a, rounding 1": {0: 4.02}}
        return make_sweep(VALUES, seeds=(0, 1, 2, 3), copies=copies, **{**SETTINGS, **changes}).path

    return pilot


def test_calibration_gives_floor_spread_and_seeds(pilot):
    name, lines = calibrate(pilot())
    text = "\n".join(lines)
    assert name == "made_up"
    assert "commit c0ffeec0, seeds 0, 1, 2, 3" in text
    assert "noise floor: 0.02 nats/token (1 replicates), at most a third of the smallest effect that matters" in text
    assert "differences: s = 0.13 nats/token" in text
    assert seeds_needed(0.3 / 0.1291, 1) < 8
    assert "n = 8 (80 % power, 1 comparison, at least 8)" in text
    assert "2.30 nats/token below the unigram cross-entropy" in text
    text = "\n".join(calibrate(pilot(equivalence_margin=0.05))[1])
    assert "MORE THAN a third" in text
    assert f"n = {seeds_needed(0.05 / 0.1291, 1)} (80 % power" in text


def test_sizes_of_a_percentage_are_in_points():
    noise = NoiseFloor({0: [0.4, 0.56]})
    assert _noise_line(noise, 0.1, unit_of("endless", [])) == (
        "- noise floor: 16 points (1 replicates), MORE THAN a third of the smallest effect that matters (10 points)"
    )


def test_entry_of_the_plan_is_replaced(pilot, tmp_path):
    plan = tmp_path / "PLAN.md"
    other = "<!-- calibration of other: a command -->\nNOT MEASURED YET\n<!-- end -->\n"
    plan.write_text(f"before\n<!-- calibration of made_up: a command -->\nNOT MEASURED YET\n<!-- end -->\n{other}")
    for _ in range(2):  # a second calibration replaces the first
        result = CliRunner().invoke(main, ["sweep", "calibrate", str(pilot()), "--plan", str(plan)])
        assert result.exit_code == 0, result.output
    text = plan.read_text()
    assert text.startswith("before\n<!-- calibration of made_up: a command -->\n- runs: commit c0ffeec0")
    assert text.count("noise floor") == 1
    assert text.endswith(other)


def test_tuning_runs_give_the_spread_before_the_arms_have_run(make_sweep):
    """Paired differences at 0.1: 0.1 and 0.3; at 0.2: 0.2 and 0.2. The mean of their variances, 0.02 and 0, is 0.01."""
    ends = {
        "a, learning_rate=0.1": {100: 4.0, 101: 4.5},
        "a, learning_rate=0.2": {100: 5.0, 101: 5.5},
        "b, learning_rate=0.1": {100: 4.1, 101: 4.8},
        "b, learning_rate=0.2": {100: 5.2, 101: 5.7},
    }
    tune = {"key": "optim.optimizer.learning_rate", "values": [0.1, 0.2], "seeds": [100, 101]}
    folder = make_sweep({"a": {}, "b": {}}, seeds=(0, 1), copies=ends, **SETTINGS, tune=tune)
    text = "\n".join(calibrate(folder.path)[1])
    assert "tuning seeds 100, 101" in text
    assert "s = 0.1 nats/token" in text
    assert "no rounding replicate has finished" in text


def test_a_tuning_run_that_diverged_does_not_count_for_the_spread(make_sweep):
    ends = {
        "a, learning_rate=0.1": {100: 4.0, 101: 4.5, 102: 4.0},
        "b, learning_rate=0.1": {100: 4.1, 101: 4.8, 102: float("nan")},
    }
    tune = {"key": "optim.optimizer.learning_rate", "values": [0.1, 0.2], "seeds": [100, 101, 102]}
    folder = make_sweep({"a": {}, "b": {}}, seeds=(0, 1), copies=ends, **SETTINGS, tune=tune)
    assert "s = 0.14 nats/token" in "\n".join(calibrate(folder.path)[1])  # of the differences 0.1 and 0.3


@pytest.mark.parametrize("key", ["equivalence_margin", "primary_contrasts"])
def test_sweep_without_a_plan_is_rejected(pilot, key):
    with pytest.raises(UserError, match=f"the sweep has no {key}"):
        calibrate(pilot(**{key: [] if key == "primary_contrasts" else None}))


def test_every_question_has_an_entry_in_the_plan(tmp_path):
    copy = tmp_path / "PLAN.md"
    copy.write_text((sweeps_dir() / "PLAN.md").read_text(encoding="utf-8"), encoding="utf-8")
    for name in (
        "mask_ratio",
        "loss_weighting",
        "objective_details",
        "loop_rho",
        "loop_retries",
        "loop_retries_longer",
    ):
        write_calibration(copy, name, [f"- measured for {name}"])
        assert f"- measured for {name}\n<!-- end -->" in copy.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="no entry"):
        write_calibration(copy, "epsilon", [])
