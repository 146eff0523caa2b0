"""Runs of any period are found where they are, and only there."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.loops.config import LoopConfig, NearExactRule
from lit_illada.loops.detect.runs import Run, exact_runs, near_runs, without_templates
from lit_illada.loops.detect.secondary import longest_repeat
from lit_illada.loops.detect.spans import loop_spans
from lit_illada.loops.detect.words import units_of_text

EXACT = {"above": 2, "max_period": 256, "min_cycles": 3, "min_length": 24}
NEAR = LoopConfig()


def ids(values):
    return np.asarray(values, np.int32)


def every_exact_run(x, max_period, min_cycles, min_length):
    """Slow and obvious: each maximal stretch of each period."""
    found = set()
    for period in range(1, max_period + 1):
        start = period
        while start < len(x):
            first = start
            while start < len(x) and x[start] == x[start - period]:
                start += 1
            length = start - first + period
            if start > first and length >= max(min_length, min_cycles * period):
                found.add((first - period, period, length))
            start += 1
    return found


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(0, 3), st.integers(2, 4), st.integers(1, 12))
def test_exact_runs_equal_a_slow_search(x, above, min_cycles, min_length):
    limits = {"max_period": 20, "min_cycles": min_cycles, "min_length": min_length}
    slow = every_exact_run(x, **limits)
    runs = exact_runs(ids(x), **limits)
    assert exact_runs(ids(x), **limits, above=above) == [run for run in runs if run.period > above]
    found = {(run.start, run.period, run.length) for run in runs}
    assert found <= slow
    # what remains is covered by reported runs of shorter periods
    for start, period, length in slow - found:
        spans = [(s, s + n) for s, p, n in found if p <= period]
        inside = [(max(start, low), min(start + length, high)) for low, high in spans]
        assert len({unit for low, high in inside for unit in range(low, high)}) >= 0.9 * length


@given(
    st.lists(st.sampled_from("abcdefghijkl"), max_size=30),
    st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=12),
    st.integers(1, 30),
)
def test_the_longest_repeat_spares_a_search_only_where_nothing_is_found(before, unit, cycles):
    units = units_of_text(" ".join(before + unit * cycles))
    assert loop_spans(units, LoopConfig(), longest_repeat(units.ids)) == loop_spans(units, LoopConfig())


@given(
    st.lists(st.integers(0, 99), min_size=3, max_size=16),
    st.integers(2, 6),
    st.sets(st.integers(0, 95), max_size=8),
    st.sampled_from([0.0, 0.1, 0.2, 1 / 3]),
    st.integers(4, 40),
)
def test_the_longest_repeat_spares_a_search_for_near_runs_only_where_there_is_none(
    unit, cycles, changes, mismatch, least
):
    looped = unit * cycles
    for place in changes:  # in all later copies, so that one comparison fails
        looped[place :: len(unit)] = [200 + place] * len(looped[place :: len(unit)])
    config = LoopConfig(near_exact=NearExactRule(mismatch=mismatch, min_cycles=2, min_length=least))
    assert near_runs(ids(looped), config, longest_repeat(ids(looped))) == near_runs(ids(looped), config)


def test_a_near_run_of_short_equal_parts_is_found_by_its_longest_repeat():
    looped = list(range(10)) * 4
    looped[17::10], looped[25::10] = [100] * 3, [101] * 2
    looped = ids(looped[:32])  # 22 comparisons: 7, 7 and 6 equal ones around two mismatches
    assert longest_repeat(looped) == 7
    assert near_runs(looped, NEAR, 7) == near_runs(looped, NEAR) == [Run(0, 10, 32, 2)]
    assert near_runs(looped, NEAR, 6) == []


loops = st.tuples(
    st.integers(0, 300), st.integers(8, 120), st.integers(3, 9), st.integers(0, 100), st.integers(0, 10**6)
)


@given(loops)
def test_an_injected_loop_is_found(drawn):
    before, period, cycles, behind, seed = drawn
    rng = random.Random(seed)
    x = [rng.randrange(10**6) for _ in range(before + period + behind)]  # so many ids that none comes twice
    unit = x[before : before + period]
    looped = ids(x[:before] + unit * cycles + x[before + period :])
    (run,) = exact_runs(looped, **EXACT)
    assert run == Run(before, period, period * cycles)
    assert run.onset == before + period
    assert run.cycles == cycles
    assert [looped[low:high].tolist() for low, high in run.copies] == [unit] * cycles


@given(loops, st.floats(0, 0.03))
def test_an_injected_loop_is_found_despite_noise(drawn, noise):
    before, period, cycles, behind, seed = drawn
    rng = random.Random(seed)
    period, cycles = max(period, 16), max(cycles, 4)
    clean = [rng.randrange(10**6) for _ in range(before + period + behind)]
    looped = clean[:before] + clean[before : before + period] * cycles + clean[before + period :]
    # far enough from each other, in all copies, that no three mismatches stand together
    within = rng.sample(range(1, period - 4, 4), min(int(noise * period * cycles), len(range(1, period - 4, 4))))
    places = [before + start + period * rng.randrange(cycles) for start in within]
    for start in places:
        looped[start] = -1 - start
    longest = max(near_runs(ids(looped), NEAR), key=lambda run: run.length)
    assert longest.period == period
    # at the edges a disturbed unit ends the run early: at most a copy of the loop
    assert before <= longest.start <= before + period
    assert before + period * (cycles - 1) <= longest.end <= before + period * cycles
    assert longest.num_mismatches <= 2 * len(places)
    assert longest.num_mismatches <= 0.1 * (longest.length - period)


def test_text_without_loops_has_no_runs():
    rng = random.Random(1)
    for _ in range(50):
        x = ids([rng.randrange(200) for _ in range(500)])
        assert exact_runs(x, **EXACT) == near_runs(x, NEAR) == []


def test_too_many_changes_in_a_row_end_a_near_run():
    unit = list(range(20))
    x = ids([*unit * 4, 100, 101, 102, *unit[3:], *unit * 4])
    assert all(run.end <= 80 or run.start >= 80 for run in near_runs(x, NEAR))


def test_runs_do_not_depend_on_the_periods_compared_at_once(monkeypatch):
    rng = random.Random(2)
    x = [rng.randrange(50) for _ in range(400)]
    x = ids(x[:100] + x[100:137] * 4 + x[137:] + x[50:130] * 3)
    whole = exact_runs(x, **EXACT), near_runs(x, NEAR)
    monkeypatch.setattr("lit_illada.loops.detect.runs._CELLS", 700)
    assert (exact_runs(x, **EXACT), near_runs(x, NEAR)) == whole
    assert {run.period for run in whole[0]} == {37, 80}


def test_a_running_sum_is_a_template_and_a_repeated_sum_a_loop():
    words, number = list(range(100, 120)), 7
    sums = ids([unit for copy in range(5) for unit in [*words, 1000 + copy]])
    template = ids([unit if unit < 1000 else number for unit in sums])
    (run,) = near_runs(sums, NEAR)
    assert without_templates([run], sums, template, 3) == []
    standing = ids([unit for copy in range(5) for unit in [*words, 1000 + copy // 4]])
    assert len(without_templates(near_runs(standing, NEAR), standing, template, 3)) == 1


@pytest.mark.parametrize("x", [[], [1], [1, 1], [1, 2, 3]])
def test_short_texts_have_no_runs(x):
    assert exact_runs(ids(x), **EXACT) == near_runs(ids(x), NEAR) == []
