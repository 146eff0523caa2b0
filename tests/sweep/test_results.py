"""What is committed as found is what the sweeps that come with the package find: their arms, metrics, comparisons."""

import csv
from pathlib import Path

import pytest

from lit_illada.share import sweeps_dir
from lit_illada.sweep.library import read_spec

RESULTS = sweeps_dir() / "results"
LOOPS = ["loop_causes", "loop_mitigation", "loop_reproduce"]


def rows(file):
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("name", sorted(path.name for path in RESULTS.iterdir()))
def test_its_arms_and_metrics_are_those_of_the_sweep(name):
    spec, found = read_spec(name), rows(RESULTS / name / "arms.csv")
    assert {row["arm"] for row in found} == {arm.name for arm in spec.all_arms()}
    assert {row["metric"] for row in found} == {metric.name for metric in spec.metrics}
    assert {row["is_preliminary"] for row in found} == {"false"}
    assert name in (sweeps_dir() / "LOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", LOOPS)
def test_its_loops_are_compared_as_the_sweep_asks_over_all_its_seeds(name):
    spec, found = read_spec(name), rows(RESULTS / name / "effects.csv")
    pairs = [row for row in found if row["compared"] == "the same problems"]
    assert [(row["first"], row["second"]) for row in pairs] == spec.comparisons()
    assert {len(row["each_seed"].split()) for row in found} == {len(spec.seeds)}


@pytest.mark.parametrize("file", sorted(RESULTS.rglob("*.csv")), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_it_names_no_place_on_the_machine_that_made_it(file):
    assert not any(value.startswith(str(Path("/"))) for row in rows(file) for value in row.values() if value)
