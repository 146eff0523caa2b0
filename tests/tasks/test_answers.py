"""Answers are read and judged as their tasks do."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.tasks.answers import exact_match, final_number, first_number
from lit_illada.tasks.references import is_correct, states_answer


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
        ("#### Step 2: add\n2+3=5\n\nThe final answer is \\boxed{5}.", 5),
        ("#### 2. Add up\n2+3=5\n#### Answer\nThe answer is 5", 5),
        ("#### Step 1\n1+1=2\n#### Step 2\nTotal: 42\n\n**Answer: 42**", 42),
        ("#### **Step 2:** add\nIn all 7", 7),
        ("#### Step 3\n#### 9\nIn 4 steps", 9),
        ("#### Total: 6 of 7", 6),
        ("3 apples.\n#### 18.\nDone in 2 steps", 18),
        (r"\boxed{", None),
        (r"\boxed{3", 3),
    ],
)
def test_the_final_number_of_a_text_is_read(text, number):
    assert final_number(text) == number


@pytest.mark.parametrize("flood", ["1" * 5000, ".5" + "1" * 5000, "1" + ",111" * 2000, "0" * 301])
def test_a_flood_of_digits_is_no_number(flood):
    assert final_number(f"{flood} it is") is None
    assert final_number(f"#### 3\nand then {flood}") == 3
    assert first_number(f"{flood} and 7") == 7


ENDLESS = ["\\boxed{", "\\boxed{x ", "the answer is ", "####", "\n", "$ ", "\\frac{", "111,"]


@pytest.mark.parametrize("unit", ENDLESS)
def test_repeated_marks_take_linear_time(unit):
    assert final_number(f"3 {unit * (5 * 10**5 // len(unit))}") in (3, 111)


def test_a_box_ends_at_its_matching_brace():
    assert final_number(r"\boxed{1} and } and \boxed{a {b} {c 7} } 8}") == 7
    assert final_number("\\boxed{" * 10**5 + "5" + "}" * 10**5) == 5


def test_a_fraction_with_a_flood_of_digits_is_read_as_its_first_number():
    assert first_number("3/" + "1" * 5000) == 3
    assert first_number(f"3 {'1' * 5000}/2") == 3


def test_a_number_of_300_digits_is_read():
    assert final_number("9" * 300) == 10**300 - 1


decimals = st.decimals(-(10**9), 10**9, allow_nan=False, allow_infinity=False, places=2)


def written(number, has_commas, currency):
    sign, size = ("-" if number < 0 else ""), f"{abs(number):,}" if has_commas else f"{abs(number)}"
    return f"{sign}{currency}{size}"


@given(
    decimals, st.booleans(), st.sampled_from(["", "$", "€", "£"]), st.sampled_from(["", ".", " dollars.", "\n", "%"])
)
def test_a_number_is_read_in_every_notation(number, has_commas, currency, behind):
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
def test_no_text_raises(text):
    assert final_number(text) is None or isinstance(final_number(text), Fraction)


@given(decimals, st.text(alphabet="abc ,;:\n", max_size=20))
def test_text_before_the_mark_does_not_matter(number, before):
    assert final_number(f"{before} 5 = 6 {before}\n#### {number}") == Fraction(number)


@pytest.fixture
def rows(shared_data):
    """Rows of a file of GSM8K."""

    def rows(name):
        text = (shared_data("gsm8k") / name).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    return rows


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl"])
def test_every_reference_answer_of_gsm8k_is_read(name, rows):
    for row in rows(name):
        assert final_number(row["answer"]) == Fraction(row["answer"].split("####")[1].strip().replace(",", ""))


def test_the_verdicts_published_with_gsm8k_are_reproduced(rows):
    verdicts = 0
    for row in rows("example_model_solutions.jsonl"):
        truth = final_number(row["ground_truth"])
        for solution in row.values():
            if isinstance(solution, dict):
                verdicts += 1
                assert (final_number(solution["solution"]) == truth) == solution["is_correct"]
    assert verdicts == 4 * 1319


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [
        ("7", "7", True),
        ("7", " 7\n", True),
        ("7", "The answer is 7.", True),
        ("7", "70", False),
        ("7", "", False),
        ("7", "seven", False),
        ("7", "7 or 8", False),
        ("1234", "1,234", True),
        ("1234", "$1,234.00", True),
        ("0.5", ".5", True),
        ("-3", "so -3", True),
        ("yes", " yes", True),
        ("yes", "yes!", False),
    ],
)
def test_an_answer_matches_exactly_when_its_last_number_is_the_reference(reference, answer, right):
    assert exact_match(answer, reference) is right


COUNTDOWN = [[49, 55, 53], 51]
FLOOD = "1" * 5000


@pytest.mark.parametrize(
    ("content", "reference", "verdict"),
    [
        ("\\boxed{49 + 55 - 53}", COUNTDOWN, True),
        ("\\boxed{49 + 55 - 53 = 51}", COUNTDOWN, True),
        ("<answer>(49 + 55) - 53</answer>", COUNTDOWN, True),
        ("\\boxed{51}", COUNTDOWN, False),
        ("\\boxed{49 + 55 - 54}", COUNTDOWN, False),
        ("\\boxed{49 + 53 - 55}", COUNTDOWN, False),
        ("\\boxed{6 \\times 8 \\div 4}", [[4, 6, 8], 12], True),
        ("\\boxed{6 / (4 - 4)}", [[4, 4, 6], 12], False),
        ("\\boxed{__import__('os')}", COUNTDOWN, False),
        ("\\boxed{9 ** 9}", [[9, 9], 1], False),
        ("so the answer is 18.", 18.0, True),
        ("so the answer is 17.", 18.0, False),
        ("#### 1,200", "1200", True),
        (f"\\boxed{{{FLOOD}}}", COUNTDOWN, False),
        (f"so the answer is {FLOOD}.", 18.0, False),
        ("so the answer is 18.", FLOOD, None),
        ("\\boxed{3}", "text without a number", None),
        ("\\boxed{3}", None, None),
        ("\\boxed{3}", float("nan"), None),
        ("\\boxed{1}", True, None),
    ],
)
def test_an_answer_is_compared_with_the_reference_of_its_task(content, reference, verdict):
    assert is_correct(content, reference) is verdict


@pytest.mark.parametrize(
    ("content", "reference", "stated"),
    [
        ("First 49 + 55 - 53 = 51. But let me try another way", COUNTDOWN, True),
        ("49 + 55 = 104 = 49 + 55 - 53 = 51", COUNTDOWN, True),
        (f"{'1 + ' * 60}49 + 55 - 53 = 51", COUNTDOWN, False),
        (f"{'x' * 300}49 + 55 - 53 = 51", COUNTDOWN, True),
        ("First 49 + 55 = 104, so 104 - 53 = 51", COUNTDOWN, False),
        ("That gives 16 - 3 - 4 = 9. And 9 * 2 = $18. Wait", 18.0, True),
        ("The price is 18 dollars? Let me see", "18", True),
        ("18 eggs are there, 3 go", 18, False),
        ("whatever", None, None),
        (f"{FLOOD} = {FLOOD}", COUNTDOWN, False),
        (f"First it is {FLOOD}. Then 9 + 9 = 18", 18.0, True),
    ],
)
def test_an_answer_stated_along_the_way_is_recognised(content, reference, stated):
    assert states_answer(content, reference) is stated


@pytest.mark.parametrize("unit", ["1 + 1 ", "1+1=", "(", "= ", "<answer>", "\\boxed{", "{", "the answer is "])
@pytest.mark.parametrize("reference", [COUNTDOWN, 3])
def test_judging_repeated_text_takes_linear_time(unit, reference):
    content = unit * (5 * 10**5 // len(unit))
    assert is_correct(content, reference) is False
    assert states_answer(content, reference) is False
