"""Repeated statements, and sentences that only look alike."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.loops.config import StatementRule
from lit_illada.loops.detect.statements import revisits, streaks
from lit_illada.loops.detect.words import sentences, units_of_text

RULE = StatementRule()


def split(text):
    return list(sentences(units_of_text(text), RULE.min_length))


@pytest.fixture(scope="module")
def prose(words):
    return lambda rng, count: [" ".join(words(rng, 9)).capitalize() + "." for _ in range(count)]


def test_sentences_end_at_full_stops_and_lines():
    text = "One two three four five six. Seven.\nA line without a stop of seven words\nlast one two three four five!"
    assert [item.text for item in split(text)] == [
        "One two three four five six.", "A line without a stop of seven words", "last one two three four five!",
    ]  # fmt: skip


@given(st.text("ab.!? \n", max_size=40))
def test_sentences_are_cut_after_stops_before_a_space_and_after_line_ends(text):
    cuts = [
        end for end in range(1, len(text)) if text[end - 1] == "\n" or (text[end - 1] in ".!?" and text[end].isspace())
    ]
    units = units_of_text(text)
    groups = Counter(sum(cut <= start for cut in cuts) for start in units.written.starts.tolist())
    found = list(sentences(units, 1))
    assert [sentence.end - sentence.start for sentence in found] == list(groups.values())
    assert [sentence.start for sentence in found] == [0, *[sentence.end for sentence in found]][: len(found)]


@pytest.mark.parametrize("signs", [".", "?!"])
def test_a_flood_of_full_stops_takes_linear_time(signs):
    flood = split(f"One two three four five six{signs * 200_000}")
    assert flood[0].text.startswith("One two three four five six")
    assert [sentence.end for sentence in flood[:2]] == [64, 128]


@given(st.integers(0, 12), st.integers(2, 5), st.integers(4, 8), st.integers(0, 10**6))
def test_an_injected_streak_is_found(prose, before, distinct, rounds, seed):
    rng = random.Random(seed)
    start, again, behind = prose(rng, before), prose(rng, distinct), prose(rng, 6)
    text = [*start, *again * rounds, *behind]
    runs = streaks(split(" ".join(text)), RULE)
    if distinct * (rounds - 1) < RULE.min_revisits:
        assert not runs
        return
    (streak,) = runs
    units = units_of_text(" ".join(text))
    assert units.written.between(streak.onset, streak.end).startswith(again[0])
    assert streak.start == len(units_of_text(" ".join(start)))
    assert streak.cycles == pytest.approx(rounds)
    assert streak.period == len(units_of_text(" ".join(again)))


def test_sentences_with_different_numbers_do_not_repeat():
    same = "We add the number 12 to the sum, which gives us a total of 40."
    other = "We add the number 12 to the sum, which gives us a total of 41."
    reworded = "We add the number 12 to the sum which gives us the total of 40."
    assert revisits(split(f"{same} {other} {reworded}"), RULE) == [None, None, 0]


def test_lookback_limits_the_compared_sentences(prose):
    rng = random.Random(0)
    first = "This very sentence comes again after a long while."
    near = split(" ".join([first, *prose(rng, 31), first]))
    far = split(" ".join([first, *prose(rng, 33), first]))
    assert revisits(near, RULE)[-1] == 0
    assert revisits(far, RULE)[-1] is None


def test_doubt_in_half_of_the_sentences_is_self_correction():
    doubt = "Wait, let me check this whole thing again. But {} are the numbers that we were given here. "
    (streak,) = streaks(split(doubt.format("these") * 8), RULE)
    assert streak.is_self_correction
    (calm,) = streaks(split("The sun rises over the hills today. The cow goes slowly to the meadow. " * 8), RULE)
    assert not calm.is_self_correction
