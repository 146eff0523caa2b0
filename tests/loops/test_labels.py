"""The detectors on real generations that were read and labelled: a second pass of labels, and texts held out of tuning.

d1_labels.csv was read first, and the detectors were tuned on it. d1_labels_second.csv is a second reading of 64 of its
texts, half a day later, without the first labels and alarms. d1_labels_held_out.csv has 44 further texts, drawn by
strata of corpus, length and alarm and read in random order without the alarms. A loop is a passage that stands there
three times or more with nothing new between, the last copy perhaps cut off.
"""

import csv
from collections import Counter
from pathlib import Path

import pytest

from lit_illada.loops.config import LoopConfig
from lit_illada.loops.detect.spans import Kind
from lit_illada.loops.outcome import outcome
from lit_illada.loops.records import read_generations


def rows(name):
    with Path(__file__).with_name(name).open(encoding="utf-8", newline="") as file:
        return {(row["file"], int(row["number"])): row for row in csv.DictReader(file)}


FIRST, SECOND, HELD_OUT = (rows(f"d1_labels{part}.csv") for part in ("", "_second", "_held_out"))


@pytest.fixture(scope="module")
def outcomes(shared_data):
    """Outcome of every text of the second reading and of the held-out sample."""
    wanted = {*SECOND, *HELD_OUT}
    files = sorted({shared_data("d1_llada_instruct") / name for name, _ in wanted})
    found = {(Path(item.file).name, item.number): item for item in read_generations(files)}
    return {key: outcome(found[key], LoopConfig()) for key in wanted}


def test_two_readings_agree():
    pairs = Counter((FIRST[key]["label"], row["label"]) for key, row in SECOND.items())
    n = sum(pairs.values())
    equal = sum(count for (one, other), count in pairs.items() if one == other) / n
    margins = [Counter(), Counter()]
    for pair, count in pairs.items():
        for margin, label in zip(margins, pair, strict=True):
            margin[label] += count
    chance = sum(margins[0][label] * margins[1][label] for label in margins[0]) / n**2
    assert n == 64
    assert equal == pytest.approx(59 / 64)
    assert (equal - chance) / (1 - chance) == pytest.approx(0.858, abs=0.001)  # Cohen's kappa
    assert pairs["loop", "none"] == pairs["none", "loop"] == 0


def test_detectors_agree_with_both_readings(outcomes):
    agreed = [(row["label"], outcomes[key]) for key, row in SECOND.items() if row["label"] == FIRST[key]["label"]]
    loops = [item for label, item in agreed if label == "loop"]
    assert len(loops) == 33
    assert sum(item.is_loop for item in loops) >= 26
    assert not any(item.is_loop for label, item in agreed if label == "none")


def test_detectors_on_texts_held_out_of_their_tuning(outcomes):
    assert not set(HELD_OUT) & set(FIRST)
    labelled = [(row["label"], outcomes[key]) for key, row in HELD_OUT.items() if row["label"] != "unclear"]
    alarms = [label for label, item in labelled if item.is_loop]
    assert len(HELD_OUT) == 44
    # 19 of 22 alarms; an improvement raises the precision without missing a loop
    assert alarms.count("loop") == 19
    assert len(alarms) <= 22
    missed = [item for label, item in labelled if label == "loop" and not (item.is_loop or Kind.circling in item.kinds)]
    assert missed == []


def test_held_out_texts_are_drawn_by_strata():
    strata = Counter(row["stratum"] for row in HELD_OUT.values())
    assert strata == {
        "countdown 512, alarm": 15,
        "countdown 512, no alarm": 13,
        "countdown 128, 256, alarm": 5,
        "countdown 128, 256, no alarm": 4,
        "gsm8k, alarm": 3,
        "gsm8k, no alarm": 4,
    }
