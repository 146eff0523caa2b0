"""What kind of loop a text holds, from where on, and how it ends."""

import random
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.loops.config import LoopConfig, NearExactRule
from lit_illada.loops.detect.findings import Known, detect, detect_tokens
from lit_illada.loops.detect.spans import Kind
from lit_illada.loops.detect.words import units_of_text

PROSE = """The eggs are laid before dawn, and the farmer walks through wet grass with a basket on each arm. Sixteen is a
good morning; three go into breakfast, and a few more are kept for the neighbours who come by around noon. Whatever is
left goes to the market in town, where people ask about the weather first and the price only later. Nobody remembers
when this began. His mother did the same, with fewer hens and a longer road, and she used to say that an egg is worth
what someone walks for it. On Sundays the market is closed, so the baskets stay in the cool pantry, under a cloth.
"""
BEHIND = " ".join(reversed(PROSE.split()))
UNIT = "Wait, let me check the sum of these two again: "
NEAR = (UNIT * 4).replace("sum", "product", 1).replace("these", "those", 1)
ANSWER = "\n<answer>\n\\boxed{18}\n</answer>"
SAID = (
    "First we add the seven apples to the five pears here. ",
    "That gives us a total of twelve fruits in the bowl. ",
    "However, the bowl holds no more than ten of them. ",
    "The remaining two of them go on the kitchen table. ",
)
STATEMENTS = "".join(SAID[index] for index in (0, 1, 2, 3, 1, 0, 3, 2, 0, 2, 1, 3, 3, 0, 2, 1, 2, 0, 3, 1))


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (PROSE, []),
        (PROSE + ANSWER + "<|eot_id|>", []),
        (PROSE + "we, " * 40, [Kind.flood]),
        (PROSE + "." * 300, [Kind.flood]),
        (PROSE + UNIT * 5 + PROSE[:40], [Kind.exact]),
        (PROSE + UNIT * 2 + PROSE, []),
        (PROSE + (UNIT * 3).replace("check", "prove", 1) + UNIT * 3, [Kind.exact]),
        (PROSE + NEAR + BEHIND + "we, " * 40, [Kind.flood, Kind.exact, Kind.near_exact]),
        ("18 eggs.\n#### 18\nQuestion: " + PROSE + UNIT * 5, [Kind.exact, Kind.runaway]),
        (PROSE + STATEMENTS, [Kind.statement]),
        (PROSE + STATEMENTS + BEHIND, [Kind.circling]),
        (PROSE + STATEMENTS + "<|eot_id|>", [Kind.circling]),
        (PROSE[:300] + "<|endoftext|>" * 200, [Kind.overflow]),
        (PROSE[:300] + ANSWER + "<|endoftext|>" * 200, []),
        ("18 eggs.\n#### 18\nQuestion: " + PROSE, [Kind.runaway]),
        ("#### Step 1: understand\n" + PROSE + "\n#### 2. Solve it\n" + PROSE, []),
        ("#### 3. Solve it\n" + PROSE + "\n#### -$3.50", []),
        ("#### 17\n" + PROSE + "#### $18 in all\n" + PROSE, [Kind.runaway]),
        ("#### Understand\n" + PROSE[:200] + "<|endoftext|>" * 200, [Kind.overflow]),
        (PROSE[:200] + "\n####<|endoftext|>" + "<|endoftext|>" * 200, []),
        ("<think>\\boxed{17}? no. " + PROSE + "</think> It is \\boxed{18}.", []),
    ],
)
def test_the_kind_of_loop_is_detected(text, kinds):
    found = detect(text)
    assert list(found.kinds) == kinds
    assert found.is_loop == any(kind in {"flood", "token_exact", "near_exact", "statement"} for kind in found.kinds)


def test_an_unfinished_text_without_loops_is_of_kind_budget():
    assert detect(PROSE, known=Known(is_finished=False)).kinds == (Kind.budget,)
    assert detect(PROSE, known=Known(is_finished=True)).kinds == ()
    assert detect(PROSE + UNIT * 6, known=Known(is_finished=False)).kinds[0] == Kind.exact


@given(st.integers(0, 80), st.integers(6, 40), st.integers(4, 8), st.integers(0, 120), st.integers(0, 10**6))
def test_an_injected_loop_is_measured(words, before, period, cycles, behind, seed):
    rng = random.Random(seed)
    clean = [f"{word}{index}" for index, word in enumerate(words(rng, before + period + behind))]
    text = " ".join([*clean[:before], *clean[before : before + period] * cycles, *clean[before + period :]])
    found = detect(text)
    (span,) = found.spans
    assert (span.kind, span.start, span.period, span.onset) == (Kind.exact, before, period, before + period)
    assert span.cycles == cycles
    assert found.length == before + period * cycles + behind
    assert found.wasted == period * (cycles - 1)
    assert found.coverage == found.wasted / found.length
    assert found.is_escaped == (behind >= 0.05 * found.length)
    assert found.is_terminal == (behind <= 3)


def test_a_loop_in_the_middle_of_a_full_canvas_is_a_forced_closure():
    found = detect(PROSE + UNIT * 9 + "Wait, let me" + ANSWER + "<|eot_id|><|endoftext|>")
    assert found.kinds[0] == Kind.exact
    assert found.is_forced_closure
    assert not found.is_escaped
    assert found.is_self_correction
    stopped_early = detect(PROSE + UNIT * 9 + ANSWER + "<|endoftext|>" * 100)
    assert not stopped_early.is_forced_closure


def test_code_in_fences_needs_more_copies():
    row = "    check(values[0], expected[0])  # as above\n"
    few, many = row * 4, row * 6
    assert detect(PROSE + few).kinds[:1] == (Kind.exact,)
    assert detect(f"{PROSE}```python\n{few}```\n").kinds == ()
    assert detect(f"{PROSE}```python\n{many}```\n").kinds[:1] == (Kind.exact,)


def test_a_running_sum_is_a_template_and_no_loop():
    total, lines = 0, []
    for day in range(1, 10):
        total += 7 * day
        lines.append(
            f"On day {day} she saves seven dollars for each day so far, so that she now holds {total} dollars."
        )
    found = detect(" ".join(lines))
    assert found.kinds == ()
    assert found.is_template


def test_thresholds_come_from_the_config():
    assert Kind.near_exact in detect(PROSE + NEAR).kinds
    strict = LoopConfig(near_exact=NearExactRule(mismatch=0.0))
    assert Kind.near_exact not in detect(PROSE + NEAR, strict).kinds


def tokens_of(text):
    units = units_of_text(text)
    ends = [0, *units.written.ends.tolist()]
    return units.ids.tolist(), [text[low:high] for low, high in pairwise(ends)]


def test_traces_give_the_temporal_onset_of_copies():
    ids, tokens = tokens_of(PROSE + UNIT * 5)
    start, period = len(units_of_text(PROSE)), len(units_of_text(UNIT))
    steps = list(range(len(ids)))
    found = detect_tokens(ids, tokens, steps=steps)
    assert found.main.onset == start + period
    assert found.temporal_onset == start + 1.5 * period - 0.5
    assert found.temporal_lead == period
    assert found.wasted_forwards == 4 * period
    backwards = detect_tokens(ids, tokens, steps=steps[::-1])
    assert backwards.temporal_lead == -period


def test_runs_are_detected_from_token_ids():
    ids, _ = tokens_of(PROSE + UNIT * 5)
    found = detect_tokens(ids)
    assert found.kinds == (Kind.exact,)
    assert not found.is_self_correction


def test_the_content_ends_at_the_first_stop_token():
    ids, tokens = tokens_of(PROSE)
    found = detect_tokens([*ids, 9999, 9999], [*tokens, "<|eos|>", "<|eos|>"])
    assert found.length == len(ids)
    assert found.is_finished
    assert found.num_stops == 2


@pytest.mark.parametrize(
    "text", ["", " ", "\n", "<|eot_id|>", "a", "…", "\\boxed{", "```", "é" * 50, "\u2028" * 5, "🙂 " * 5]
)
def test_odd_texts_are_read(text):
    assert not detect(text).is_loop


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("a" * 10**7, []),
        ("wait, " * 20_000, [(Kind.flood, 0, 40_000), (Kind.statement, 0, 40_000)]),
        ("word " * 3 + "x y z. " * 20_000, [(Kind.exact, 3, 80_003)]),
    ],
    ids=["one word", "two units", "four units"],
)
def test_loops_of_long_texts_are_detected_whole(text, spans):
    assert [(span.kind, span.start, span.end) for span in detect(text).spans] == spans


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit", ["wait, ", "1 + 2 = 3\n", "A sentence of some length says the same. ", "\\boxed{", "- "]
)
def test_ten_megabytes_take_half_a_minute_at_most(unit):
    started_at = time.process_time()
    assert detect(unit * (10**7 // len(unit))).is_loop
    assert time.process_time() - started_at < 30
