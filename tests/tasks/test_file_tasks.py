"""Tasks read from files: what their checkers accept, their splits, and errors in their lines."""

import importlib.util
import json

import pytest

from lit_illada.errors import UserError
from lit_illada.tasks.base import Problem, Split
from lit_illada.tasks.choices import Choices
from lit_illada.tasks.gsm8k import Gsm8k
from lit_illada.tasks.math import Math

HAS_MATH_VERIFY = importlib.util.find_spec("math_verify") is not None


@pytest.fixture
def file(tmp_path):
    def file(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return file


@pytest.mark.parametrize(
    ("completion", "answer", "is_right"),
    [
        ("#### 18", "18", True),
        ("line one\nline two\n#### 18", "18", True),
        ("<reasoning>\nfirst\nsecond\n</reasoning>\n<answer>\n18\n</answer>", "18", True),
        (r"\boxed{18}", "18", True),
        ("The answer is $18.00.", "18", True),
        ("36/2", "18", True),
        ("#### -18", "-18", False),
        ("#### 18.5", "37/2", False),
        ("18 then 17", "17", False),
        ("eighteen", None, False),
        ("", None, False),
        ("#### 1" + "8" * 5000, None, False),
    ],
    ids=lambda value: str(value)[:12],
)
def test_gsm8k_compares_the_final_number(completion, answer, is_right):
    verdict = Gsm8k(path="-").check(Problem("q", "18", 2, "here"), completion)
    assert (verdict.correct, verdict.answer) == (is_right, answer)


@pytest.mark.parametrize("reference", ["-3", "1/2"])
def test_gsm8k_accepts_negative_and_fractional_references(reference):
    assert Gsm8k(path="-").check(Problem("q", reference, 2, "here"), f"#### {reference}").correct


def test_gsm8k_reads_steps_and_answer(file):
    row = {"question": "How many?", "answer": "2+2=<<2+2=4>>4\nso 4*300=<<4*300=1200>>1200\n#### 1,200"}
    (problem,) = Gsm8k(path=file(row, *({**row, "question": f"{n}"} for n in range(99)))).problems(Split.TRAIN, 1)
    assert problem.solution == "2+2=4\nso 4*300=1200"
    assert (problem.reference, problem.difficulty, problem.answer) == ("1200", 2, "#### 1200")


@pytest.mark.parametrize(
    ("answer", "reference", "is_right"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac12", True),
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}", True),
        (r"\boxed{0.5}", r"\frac12", True),
        (r"\boxed{1/2}", r"\frac{1}{2}", True),
        (r"\boxed{-\frac{1}{2}}", "-0.5", True),
        (r"\boxed{x = 5}", "5", True),
        (r"\boxed{10,\!000}", "10000", True),
        (r"\boxed{1{,}234}", "1,234", True),
        (r"\boxed{90^\circ}", "90", True),
        (r"\boxed{5\text{ cm}}", "5", True),
        (r"\boxed{50\%}", "50", True),
        (r"\boxed{\text{east}}", r"\text{east}", True),
        (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"(3,\frac{\pi}{2})", True),
        ("first \\boxed{1},\nthen\n\\boxed{\\sqrt{2}}", r"\sqrt{2}", True),
        ("The answer is 42.", "42", True),
        (r"\boxed{2}", "3", False),
        (r"\boxed{}", "3", False),
        (r"\boxed{3", "3", False),
        ("\x08oxed{3}", "3", False),
        ("so it is 3", "3", False),
        (r"\boxed{1,2}", "12", False),
        (r"\boxed{\frac{1}{0}}", "0", False),
        (r"\boxed{9**9**9}", "3", False),
        ("", "3", False),
        (r"\boxed{" + "9" * 5000 + "}", "3", False),
    ],
    ids=lambda value: str(value)[:20],
)
def test_math_compares_normalised_answers(answer, reference, is_right):
    verdict = Math(path="-").check(Problem("q", reference, 1, "here"), answer)
    assert verdict.correct is is_right, verdict
    assert (verdict.reason is None) is is_right


def test_math_reads_both_layouts(file):
    rows = [
        {"problem": "a?", "solution": r"so \boxed{\frac{1}{2}}", "level": "Level 3", "type": "Algebra"},
        {"problem": "b?", "solution": "so", "answer": "7", "level": 5, "subject": "Geometry"},
        {"problem": "c?", "solution": "so", "answer": "8"},
    ]
    task = Math(path=file({**rows[0], "problem": "other"}), test_path=file(*rows, name="test.jsonl"))
    problems = task.problems(Split.TEST)
    assert [(p.reference, p.difficulty) for p in problems] == [(r"\frac{1}{2}", 3), ("7", 5), ("8", 0)]


@pytest.mark.skipif(not HAS_MATH_VERIFY, reason="needs the extra `math`")
@pytest.mark.parametrize(
    ("answer", "is_right"),
    [(r"\boxed{(x+1)^2}", True), (r"\boxed{1+x^2+2x}", True), (r"\boxed{x^2}", False), (r"\boxed{(((}", False)],
)
def test_math_verify_finds_equal_expressions(answer, is_right):
    problem = Problem("q", "x^2+2x+1", 1, "here")
    assert Math(path="-", use_math_verify=True, time_limit_s=60).check(problem, answer).correct is is_right


@pytest.mark.skipif(not HAS_MATH_VERIFY, reason="needs the extra `math`")
def test_math_verify_is_stopped_at_its_limit():
    task = Math(path="-", use_math_verify=True, time_limit_s=0.5)
    verdict = task.check(Problem("q", "3", 1, "here"), r"\boxed{\frac{9^{9^{9^{9}}}}{7}-10^{10^{10}}}")
    assert not verdict.correct
    assert "math-verify" in verdict.reason
    assert (
        Math(path="-", use_math_verify=True, time_limit_s=60).check(Problem("q", "2x", 1, ""), r"\boxed{x+x}").correct
    )


@pytest.mark.skipif(HAS_MATH_VERIFY, reason="math-verify is installed")
def test_a_missing_package_is_named_with_its_command():
    with pytest.raises(UserError, match=r"pip install 'lit-illada\[math\]'"):
        Math(path="-", use_math_verify=True)


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("#### B", "B"),
        ("The answer is B.", "B"),
        ("The answer is (B) because", "B"),
        ("Answer: B) a dog", "B"),
        ("B", "B"),
        (" (B)", "B"),
        ("a dog", "B"),
        ("The answer is a dog.", "B"),
        (r"\boxed{B}", "B"),
        ("<answer>B</answer>", "B"),
        ("<answer>A</answer>", "A"),
        ("A dog", "B"),
        ("The answer is **B**.", "B"),
        ("**Answer:** B", "B"),
        ("**B**", "B"),
        (r"\boxed{\text{B}}", "B"),
        ("The correct answer is: B) dog", "B"),
        ("The answer is: (B)", "B"),
        ("Answer: option B.", "B"),
        ("#### Step 1\nA is a cat.\n#### Step 2\nThe answer is B", "B"),
        ("The answer is A? No.\n#### B", "B"),
        ("#### a dog", "B"),
        ("A cat is one", None),
        ("#### D", None),
        ("dog or cat", None),
        ("", None),
        ("BBB", None),
    ],
)
def test_choices_are_read_by_letter_or_text(completion, letter):
    problem = Problem("q", ["B", ["a cat", "a dog", "a cow"]], 3, "here")
    verdict = Choices(path="-").check(problem, completion)
    assert verdict.answer == letter
    assert verdict.correct is (letter == "B")


ROWS = [{"question": f"{n}?", "answer": n} for n in range(200)]


def test_a_test_file_is_the_test_split_and_its_questions_leave_the_others(file):
    task = Gsm8k(path=file(*ROWS), test_path=file(*ROWS[:40], *ROWS[:5], name="test.jsonl"))
    splits = [[p.question for p in task.problems(split)] for split in Split]
    assert splits[2] == [row["question"] for row in ROWS[:40]]
    assert sorted(splits[0] + splits[1]) == sorted(row["question"] for row in ROWS[40:])
    assert not set(splits[0]) & set(splits[1])


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (Gsm8k, {"question": "q"}, "rows.jsonl:1: no field 'answer'"),
        (Gsm8k, {"question": "q", "answer": "many"}, 'rows.jsonl:1: no number in answer "many"'),
        (Gsm8k, {"question": 3, "answer": "4"}, "rows.jsonl:1: question must be a non-empty text; got 3"),
        (Math, {"problem": "q", "solution": "4"}, "rows.jsonl:1: no field 'answer', and no "),
        (Choices, {"question": "q", "choices": ["a", "b"], "answer": 2}, "rows.jsonl:1: answer is 2"),
        (Choices, {"question": "q", "choices": list(map(str, range(30))), "answer": 28}, "rows.jsonl:1: 30 choices"),
    ],
)
def test_an_invalid_line_is_named(file, task, row, message):
    with pytest.raises(UserError) as error:
        task(path=file(row)).problems(Split.TRAIN)
    assert message in str(error.value)


def test_a_file_that_is_missing_or_too_small_is_named(file, tmp_path):
    with pytest.raises(UserError, match="path is empty: it must be a file of problems"):
        Gsm8k()
    with pytest.raises(UserError, match=r"none\.jsonl"):
        Gsm8k(path=str(tmp_path / "none.jsonl")).problems(Split.TRAIN)
    with pytest.raises(UserError, match="of 500 train problems; request fewer"):
        Gsm8k(path=file(*ROWS)).problems(Split.TRAIN, 500)
