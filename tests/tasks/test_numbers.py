"""The number that a text gives as its answer."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.tasks.numbers import final_number, first_number

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("48 and 24 are 72.\n#### 72", 72),
        ("#### $1,234.50 dollars", Fraction(2469, 2)),
        ("#### 10 + 8 = 18", 18),
        ("#### 5\nQuestion: and 7?\n#### 9", 9),
        ("The answer is 1,234.", 1234),
        ("The answer is 10 + 8 = 18. I am sure, 100 %.", 18),
        ("The answer to the question is 18, because 3.", 18),
        ("**Answer:** 18 eggs, not 3", 18),
        ("A: 7\nB: 9", 7),
        ("so\n\n  A: 7\nB: 9", 7),
        (r"so \boxed{42} it is, in 2 steps", 42),
        (r"\boxed{\text{about } \$1{,}234.50}", Fraction(2469, 2)),
        (r"\boxed{x = \frac{3}{4}}", Fraction(3, 4)),
        (r"\boxed{1\dfrac{1}{2}}", Fraction(3, 2)),
        (r"-\frac{3}{4}", Fraction(-3, 4)),
        ("she eats 1 1/2 cups", Fraction(3, 2)),
        ("1/2 of them", Fraction(1, 2)),
        ("12 / 60 = 0.2", Fraction(1, 5)),
        ("-5", -5),
        ("−5 degrees", -5),
        ("it costs -$5", -5),
        ("it costs $-5", -5),
        ("10-5", 5),
        ("(3)-4", 4),
        ("50%", 50),
        (".5", Fraction(1, 2)),
        ("1,2,3", 3),
        ("12345,678", 678),
        ("1,234,56", 56),
        ("5/0", 0),
        ("5 / 2.5", Fraction(5, 2)),
        ("two eggs <<1+1=2>>", None),
        ("no number", None),
        ("", None),
        ("####", None),
        (r"\boxed{", None),
        (r"\boxed{3", 3),
    ],
)
def test_what_a_text_says(text, number):
    assert final_number(text) == number


@pytest.mark.parametrize("flood", ["1" * 5000, ".5" + "1" * 5000, "1" + ",111" * 2000, "0" * 301])
def test_a_flood_of_digits_is_no_number(flood):
    assert final_number(f"{flood} it is") is None
    assert final_number(f"#### 3\nand then {flood}") == 3
    assert first_number(f"{flood} and 7") == 7


ENDLESS = ["\\boxed{", "\\boxed{x ", "the answer is ", "####", "\n", "$ ", "\\frac{", "111,"]


@pytest.mark.parametrize("unit", ENDLESS)
def test_what_is_repeated_without_end_takes_linear_time(unit):
    assert final_number(f"3 {unit * (5 * 10**5 // len(unit))}") in (3, 111)


def test_nested_braces_are_closed_by_their_own():
    assert final_number(r"\boxed{1} and } and \boxed{a {b} {c 7} } 8}") == 7
    assert final_number("\\boxed{" * 10**5 + "5" + "}" * 10**5) == 5


def test_a_fraction_of_floods_is_its_first_number():
    assert first_number("3/" + "1" * 5000) == 3
    assert first_number(f"3 {'1' * 5000}/2") == 3


def test_a_number_of_300_digits_is_one():
    assert final_number("9" * 300) == 10**300 - 1


decimals = st.decimals(-(10**9), 10**9, allow_nan=False, allow_infinity=False, places=2)


def written(number, has_commas, currency):
    sign, size = ("-" if number < 0 else ""), f"{abs(number):,}" if has_commas else f"{abs(number)}"
    return f"{sign}{currency}{size}"


@given(
    decimals, st.booleans(), st.sampled_from(["", "$", "€", "£"]), st.sampled_from(["", ".", " dollars.", "\n", "%"])
)
def test_a_number_is_read_however_it_is_written(number, has_commas, currency, behind):
    text = written(number, has_commas, currency) + behind
    want = Fraction(number)
    assert final_number(f"first 17, then 4\n#### {text}") == want
    assert final_number(f"The answer is {text}") == want
    assert final_number(f"In 3 steps: \\boxed{{{text}}} after 8 days") == want
    assert final_number(f"We have 3 and get {text}") == want
    assert first_number(f"{text} is more than 2") == want


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**4))
def test_fractions_are_exact(above, below):
    assert final_number(f"#### {above}/{below}") == Fraction(above, below)
    sign = "-" if above < 0 else ""
    assert final_number(rf"\boxed{{{sign}\frac{{{abs(above)}}}{{{below}}}}}") == Fraction(above, below)


@given(st.text(alphabet="#0123456789.,/-$%=\\{}boxedfrac answeris:A\n", max_size=60))
def test_no_text_breaks_the_reading(text):
    assert final_number(text) is None or isinstance(final_number(text), Fraction)


@given(decimals, st.text(alphabet="abc ,;:\n", max_size=20))
def test_what_is_left_of_the_mark_does_not_matter(number, before):
    assert final_number(f"{before} 5 = 6 {before}\n#### {number}") == Fraction(number)


def rows(name):
    path = GSM8K / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl"])
def test_every_gold_answer_of_gsm8k_is_read(name):
    for row in rows(name):
        assert final_number(row["answer"]) == Fraction(row["answer"].split("####")[1].strip().replace(",", ""))


def test_the_verdicts_published_with_gsm8k_are_reproduced():
    verdicts = 0
    for row in rows("example_model_solutions.jsonl"):
        truth = final_number(row["ground_truth"])
        for solution in row.values():
            if isinstance(solution, dict):
                verdicts += 1
                assert (final_number(solution["solution"]) == truth) == solution["is_correct"]
    assert verdicts == 4 * 1319
