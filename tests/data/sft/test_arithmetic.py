"""Chained-arithmetic examples are correct, disjoint between the splits and free of loops."""

import hashlib
import re
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from lit_illada.data.sft.chat_template import Role
from lit_illada.data.sft.config import ReasoningSource
from lit_illada.data.sft.examples import make_examples
from lit_illada.errors import UserError
from lit_illada.tasks.base import Split
from lit_illada.tasks.chains import ProblemRange
from lit_illada.tasks.traces import RECHECK

SOURCE = ReasoningSource(recheck_fraction=0.5, slip_fraction=0.5)
MIXED = ProblemRange(moduli=[2, 7, 10], min_depth=1, max_depth=6, operands=3, digits=2)


def make(source=SOURCE, difficulty=MIXED, portion=Split.TRAIN, num=500, fraction=0.1):
    return make_examples(source, difficulty, portion, num, fraction)


def parts(example):
    """(question, trace lines, answer)."""
    user, assistant = example.messages
    assert [user.role, assistant.role] == [Role.USER, Role.ASSISTANT]
    return user.content, assistant.reasoning.split("\n"), assistant.content


def solve(question):
    """(values by label, the answer, the modulus), computed by Python."""
    *chain, final_line = question.split("\n")
    modulus = int(final_line.removeprefix("x mod ").rstrip("?"))
    values, x = {}, None
    for line in chain:
        label, _, expression = line.partition("=")
        values[label] = x = eval(expression, {}, {"x": x}) % modulus
    return values, x, modulus


@pytest.mark.parametrize("operations", ["+", "+-*"])
def test_reference_answers_equal_python_results(operations):
    for example in make(replace(SOURCE, operations=operations)):
        question, _, answer = parts(example)
        assert answer == example.truth == str(solve(question)[1])


def test_every_trace_line_is_correct_except_slips_corrected_by_the_next_line():
    num_slips = 0
    for example in make(replace(SOURCE, operations="+-*")):
        question, lines, _ = parts(example)
        values, _, modulus = solve(question)
        for index, line in enumerate(lines):
            if line == RECHECK:
                continue
            label, expression, result = re.fullmatch(r"(\w)=(.*)=(\d+)", line).groups()
            is_true = eval(expression) % modulus == int(result) == values[label]
            if not is_true:
                num_slips += 1
                assert lines[index + 1] == RECHECK
                assert lines[index + 2].startswith(f"{label}={expression}=")
    assert num_slips > 50


def test_traces_recheck_one_to_three_distinct_steps_at_most_once_each():
    counts = Counter()
    for example in make(num=2000):
        question, lines, _ = parts(example)
        num_rechecks = lines.count(RECHECK)
        counts[num_rechecks] += 1
        stated = Counter(line.partition("=")[0] for line in lines if line != RECHECK)
        assert set(stated) == {assignment[0] for assignment in question.split("\n")[:-1]}
        assert max(stated.values()) <= 2
        assert sum(n == 2 for n in stated.values()) == num_rechecks <= min(3, len(stated) // 2)
    assert min(counts[n] for n in (1, 2, 3)) > 30


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_fraction_of_rechecked_traces_matches_config(fraction):
    examples = make(replace(SOURCE, recheck_fraction=fraction), num=2000)
    longer = [example for example in examples if len(parts(example)[0].split("\n")) > 2]
    observed = sum(RECHECK in example.messages[-1].reasoning for example in longer) / len(longer)
    assert abs(observed - fraction) < 0.05
    assert not any(RECHECK in example.messages[-1].reasoning for example in examples if example not in longer)


def test_chains_below_min_recheck_depth_are_not_rechecked_and_longer_ones_do_not_change():
    careless = replace(SOURCE, recheck_fraction=1.0)
    doubting = replace(careless, min_recheck_depth=3)
    examples = [make_examples(source, source.easy, Split.TRAIN, 400, 0.1) for source in (careless, doubting)]
    for before, after in zip(*examples, strict=True):
        is_short = before.messages[0].content.count("\n") < 3
        assert (RECHECK in after.messages[-1].reasoning) == (not is_short)
        assert is_short or before == after


RETRIED = replace(SOURCE, recheck_fraction=0.0, slip_fraction=0.0, retry_fraction=0.75, max_retries=24)
TEN = ProblemRange(moduli=[10], min_depth=1, max_depth=3, max_numbers=[9])


def retries(source, difficulty=TEN, num=2000):
    """Of every example: its question, its lines, and [(label, expression, whether right)] of its statements."""
    for example in make(source, difficulty, num=num):
        question, lines, _ = parts(example)
        modulus = solve(question)[2]
        statements = [re.fullmatch(r"(\w)=(.*)=(\d+)", line).groups() for line in lines if line != RECHECK]
        yield (
            question,
            lines,
            [(label, text, eval(text) % modulus == int(result)) for label, text, result in statements],
        )


def test_a_retried_step_is_stated_until_right_and_every_wrong_statement_is_rechecked():
    for question, lines, statements in retries(RETRIED):
        assert len(set(lines) - {RECHECK}) == len(statements)  # none occurs twice
        rest = iter(lines)
        for label, text, is_right in statements:
            assert next(rest).startswith(f"{label}={text}=")
            assert is_right or next(rest) == RECHECK
        assert next(rest, None) is None
        assert [label for label, _, is_right in statements if is_right] == list(solve(question)[0])


def test_without_the_sentence_the_traces_are_the_same_statements():
    source = replace(RETRIED, max_retries=6)
    silent = retries(replace(source, retry_sentence=False))
    for (question, lines, _), (same_question, statements, _) in zip(retries(source), silent, strict=True):
        assert question == same_question
        assert statements == [line for line in lines if line != RECHECK]


@pytest.mark.parametrize("fraction", [0.25, 0.75])
def test_the_number_of_wrong_statements_of_a_step_is_geometric(fraction):
    source = replace(RETRIED, retry_fraction=fraction)
    counts = Counter(lines.count(RECHECK) for _, lines, _ in retries(source, replace(TEN, max_depth=1)))
    for num in range(4):
        reached = sum(count for wrong, count in counts.items() if wrong >= num)
        more = sum(count for wrong, count in counts.items() if wrong > num)
        assert abs(more / reached - fraction) < 3 * (fraction * (1 - fraction) / reached) ** 0.5
    assert max(counts) <= 9  # as many as there are wrong results


def test_first_wrong_results_are_uniform_over_the_wrong_ones():
    offsets = Counter()
    for _, lines, _ in retries(replace(RETRIED, retry_fraction=1.0), replace(TEN, max_depth=1)):
        expression, _, first = lines[0].partition("=")[2].rpartition("=")
        offsets[(int(first) - eval(expression)) % 10] += 1
    assert set(offsets) == set(range(1, 10))
    expected = sum(offsets.values()) / 9
    assert sum((count - expected) ** 2 / expected for count in offsets.values()) < 26.1  # 0.1 % of chi² with 8


def test_certain_retries_state_every_wrong_result_until_max_retries():
    certain = replace(RETRIED, retry_fraction=1.0)
    for question, lines, _ in retries(certain, num=200):
        assert lines.count(RECHECK) == min(9 * (question.count("\n")), 24)
    limited = [lines.count(RECHECK) for _, lines, _ in retries(replace(RETRIED, max_retries=5), num=500)]
    assert max(limited) == 5
    assert min(limited) == 0


def test_steps_without_a_large_number_in_the_question_are_never_retried():
    num_wrong = Counter()
    for question, _, statements in retries(replace(RETRIED, min_retry_number=4)):
        numbers = dict(line.split("=") for line in question.split("\n")[:-1])
        for label, _, is_right in statements:
            is_large = any(int(number) >= 4 for number in re.findall(r"\d+", numbers[label]))
            num_wrong[is_large] += not is_right
    assert num_wrong[False] == 0
    assert num_wrong[True] > 1000


def test_retries_do_not_change_the_problems_and_without_them_traces_are_plain():
    plain = make(replace(SOURCE, recheck_fraction=0.0))
    assert make(replace(RETRIED, retry_fraction=0.0)) == plain
    for fraction in (0.25, 0.75):
        retried = make(replace(RETRIED, retry_fraction=fraction))
        assert [parts(example)[::2] for example in retried] == [parts(example)[::2] for example in plain]


def test_splits_have_no_common_problem_even_where_ranges_overlap():
    small = ProblemRange(min_depth=1, max_depth=2)
    for ranges in ([MIXED] * 3, [small] * 3, [small, small, ProblemRange(min_depth=2, max_depth=3)]):
        train, validation, test = (
            {parts(example)[0] for example in make(difficulty=difficulty, portion=portion, num=num)}
            for difficulty, portion, num in zip(ranges, Split, [4000, 300, 300], strict=True)
        )
        assert len(validation) == len(test) == 300
        assert not train & validation
        assert not train & test
        assert not validation & test


def test_problems_span_the_configured_range():
    seen = set()
    for example in make(num=1000):
        question, lines, _ = parts(example)
        assignments = question.split("\n")[:-1]
        seen.add((len(assignments), solve(question)[2]))
        assert all(len(re.split(r"[+]", assignment.partition("=")[2])) == 3 for assignment in assignments)
        assert all(int(number) < 100 for number in re.findall(r"\d+", question))
        assert len(lines) >= len(assignments)
    assert seen == {(depth, modulus) for depth in range(1, 7) for modulus in (2, 7, 10)}


def test_examples_depend_only_on_seed_and_requesting_more_extends_them():
    assert make(num=50) == make(num=80)[:50]
    assert make(replace(SOURCE, seed=1), num=50) != make(num=50)
    # a change of the traces does not change the problems: arms of an ablation train on the same ones
    questions = [parts(example)[0] for example in make(num=50)]
    assert [parts(example)[0] for example in make(replace(SOURCE, recheck_fraction=0.0), num=50)] == questions


def longest_run(tokens, period):
    """Length of the longest run that repeats with this period, first copy included; 0 if there is none."""
    longest = current = 0
    for a, b in zip(tokens, tokens[period:], strict=False):
        current = current + 1 if a == b else 0
        longest = max(longest, current)
    return longest + period if longest else 0


def loops(tokens):
    """Periods of exact loops of at least 3 tokens, 3 cycles and 24 tokens in total."""
    runs = {period: longest_run(tokens, period) for period in range(3, len(tokens) // 3 + 1)}
    return [period for period, run in runs.items() if run >= max(24, 3 * period)]


def test_reference_loop_detector_detects_loops():
    phrase = "wait let me check that again once more".split()
    assert loops(["so", *phrase * 3, "end"])
    assert not loops(["so", *phrase * 2, "end"])


def test_corpus_contains_no_loops():
    sources = [replace(SOURCE, recheck_fraction=1.0), RETRIED]
    ranges = [ReasoningSource().easy, ReasoningSource().harder, MIXED, ProblemRange(operands=6, max_depth=3)]
    for source, difficulty in product(sources, ranges):
        for example in make(source, difficulty, num=150):
            question, lines, _ = parts(example)
            text = "\n".join([question, *lines])
            assert not loops(re.findall(r"\w+|\s|[^\w\s]", text)), text
            assert not loops(text), text  # the finest of all tokenizers


def test_range_with_too_few_held_out_problems_is_rejected():
    with pytest.raises(UserError, match=r"only \d+ of 500 validation problems were found"):
        make(difficulty=ProblemRange(max_depth=1), portion=Split.VALIDATION, num=500, fraction=0.1)


@pytest.mark.parametrize(
    "fields",
    [
        {"operations": "/"},
        {"operations": ""},
        {"recheck_fraction": 1.5},
        {"num_train": 0},
        {"min_recheck_depth": 0},
        {"retry_fraction": 1.5, "recheck_fraction": 0.0},
        {"retry_fraction": 0.5, "recheck_fraction": 0.5},
        {"retry_fraction": 0.5, "recheck_fraction": 0.0, "slip_fraction": 0.5},
        {"retry_fraction": 0.5, "recheck_fraction": 0.0, "min_recheck_depth": 2},
        {"max_retries": 25},
        {"min_retry_number": -1},
    ],
)
def test_invalid_sources_are_rejected(fields):
    with pytest.raises(UserError, match=r"sft_data\.source\."):
        ReasoningSource(**fields)


def test_largest_numbers_are_drawn_uniformly_and_bound_every_number():
    source, mixed = ReasoningSource(), ProblemRange([10], 2, 4, max_numbers=[3, 9])
    largest = [
        max(int(number) for line in example.messages[0].content.splitlines()[:-1] for number in re.findall(r"\d", line))
        for example in make_examples(source, mixed, Split.TRAIN, 600, 0.1)
    ]
    assert 0.4 < sum(most <= 3 for most in largest) / 600 < 0.6
    limited = make_examples(source, ProblemRange([10], 2, 4, max_numbers=[9]), Split.TRAIN, 50, 0.1)
    assert limited == make_examples(source, ProblemRange([10], 2, 4), Split.TRAIN, 50, 0.1)


@pytest.mark.parametrize(
    ("source", "digest"),
    [
        (ReasoningSource(), "b7dd517e5d94c832"),
        (
            ReasoningSource(
                seed=3, operations="+-*", recheck_fraction=0.75, slip_fraction=0.3, min_recheck_depth=2, harder=MIXED
            ),
            "c90e67d93c8a28a4",
        ),
        (replace(RETRIED, easy=TEN, harder=MIXED, max_retries=8, min_retry_number=4), "710625419e6a8480"),
    ],
)
def test_the_examples_never_change(source, digest):
    examples = [
        (example.origin, example.truth, [(str(m.role), m.content, m.reasoning) for m in example.messages])
        for difficulty in (source.easy, source.harder)
        for split in Split
        for example in make_examples(source, difficulty, split, 100, 0.1)
    ]
    assert hashlib.sha256(repr(examples).encode()).hexdigest()[:16] == digest
