"""Precision and recall of the detectors: on texts written to mislead them, and on labelled real generations."""

import csv
from pathlib import Path

import pytest
from loops import hard_texts

from lit_illada.loops.config import LoopConfig
from lit_illada.loops.detect.findings import detect
from lit_illada.loops.detect.spans import Kind
from lit_illada.loops.outcome import outcome
from lit_illada.loops.records import read_generations

LABELS = Path(__file__).with_name("d1_labels.csv")


@pytest.mark.parametrize("name", hard_texts.GOOD)
def test_text_that_repeats_by_design_raises_no_alarm(name):
    found = detect(hard_texts.GOOD[name]())
    assert not found.is_loop
    assert Kind.circling not in found.kinds


@pytest.mark.parametrize("name", hard_texts.LOOPS)
def test_a_loop_is_found(name):
    assert detect(hard_texts.LOOPS[name]()).is_loop


@pytest.fixture(scope="module")
def labelled(shared_data):
    """(label, outcome) of the generations that were read and labelled: loop, none or unclear.

    A generation is a loop where a passage stands there three times or more with nothing new between, the last copy
    perhaps cut off. 101 of 1,898 were drawn by strata of the alarms; 76 were read twice, with 73 equal labels.
    """
    folder = shared_data("d1_llada_instruct")
    with LABELS.open(encoding="utf-8", newline="") as file:
        labels = {(row["file"], int(row["number"])): row["label"] for row in csv.DictReader(file)}
    files = sorted({folder / name for name, _ in labels})
    generations = [item for item in read_generations(files) if (Path(item.file).name, item.number) in labels]
    assert len(generations) == len(labels) == 101
    return [(labels[Path(item.file).name, item.number], outcome(item, LoopConfig())) for item in generations]


def test_alarms_on_real_generations_are_loops(labelled):
    alarms = [label for label, item in labelled if item.is_loop and label != "unclear"]
    assert alarms.count("loop") >= 0.95 * len(alarms)
    exact = [label for label, item in labelled if item.kinds & {Kind.flood, Kind.exact}]
    assert exact.count("loop") == len(exact) >= 20


def test_most_loops_among_real_generations_are_found(labelled):
    loops = [item for label, item in labelled if label == "loop"]
    assert sum(item.is_loop or Kind.circling in item.kinds for item in loops) >= 0.78 * len(loops)
