"""Answers are judged as their tasks judge them."""

import pytest

from lit_illada.loops.answers import is_right, states_answer

COUNTDOWN = [[49, 55, 53], 51]
FLOOD = "1" * 5000


@pytest.mark.parametrize(
    ("content", "truth", "verdict"),
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
def test_the_verdict(content, truth, verdict):
    assert is_right(content, truth) is verdict


@pytest.mark.parametrize(
    ("content", "truth", "stated"),
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
def test_whether_the_answer_stood_there(content, truth, stated):
    assert states_answer(content, truth) is stated


@pytest.mark.parametrize("unit", ["1 + 1 ", "1+1=", "(", "= ", "<answer>", "\\boxed{", "{", "the answer is "])
@pytest.mark.parametrize("truth", [COUNTDOWN, 3])
def test_what_is_repeated_without_end_takes_linear_time(unit, truth):
    content = unit * (5 * 10**5 // len(unit))
    assert is_right(content, truth) is False
    assert states_answer(content, truth) is False
