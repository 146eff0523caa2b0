r"""Judges answers where a file has no verdict, and the lines of chained arithmetic.

A truth is a number, a text that gives one, or, for Countdown, [the numbers, the target]: then the answer is an
expression that uses each number once and has the target as its value. The expression is looked for in the last
\boxed{}, else in <answer>, else in the whole text, and read before an equals sign where there is one.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from lit_illada.data.sft.arithmetic import RECHECK
from lit_illada.loops.detect.ending import THINK_END
from lit_illada.tasks.numbers import final_number, first_number

_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_EQUATION = re.compile(r"=(?=\s*[-0-9. ])")
_SIGNS = "0123456789+-*/() "
_LONGEST = 200  # characters of an expression
_STATED = re.compile(r"=|\bis\b|:")
_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def is_right(content: str, truth: Any) -> bool | None:
    """None where the truth is of no known kind."""
    if (problem := _countdown(truth)) is not None:
        return _solves(_expression(content), *problem)
    wanted = _number(truth)
    return None if wanted is None else final_number(content) == wanted


def states_answer(content: str, truth: Any) -> bool | None:
    """Whether the right answer stands anywhere in a text: behind an equals sign, a colon or "is"."""
    if (problem := _countdown(truth)) is not None:
        return any(_solves(left, *problem) for left in _left_sides(_plain(content)))
    wanted = _number(truth)
    if wanted is None:
        return None
    return any(first_number(content[found.end() : found.end() + 40]) == wanted for found in _STATED.finditer(content))


def _countdown(truth: Any) -> tuple[list[int], int] | None:
    if not (isinstance(truth, list) and len(truth) == 2 and isinstance(truth[0], list)):
        return None
    numbers, target = truth
    return (numbers, target) if all(isinstance(number, int) for number in [*numbers, target]) else None


def _number(truth: Any) -> Fraction | None:
    if isinstance(truth, bool) or truth is None:
        return None
    if isinstance(truth, int | float):
        return Fraction(str(truth)) if truth == truth and abs(truth) != float("inf") else None
    return final_number(truth) if isinstance(truth, str) else None


def _expression(content: str) -> str:
    boxed = _BOXED.findall(content)
    tagged, is_closed, _ = content.partition("<answer>")[2].partition("</answer>")
    written = _plain(boxed[-1] if boxed else tagged.strip() if is_closed else content)
    return next(_left_sides(written), written)


def _left_sides(text: str) -> Iterator[str]:
    """What stands before an equals sign and can be an expression; of one too long, its end, still too long."""
    for found in _EQUATION.finditer(text):
        before = text[max(0, found.start() - _LONGEST - 1) : found.start()]
        if left := before[len(before.rstrip(_SIGNS)) :]:
            yield left


def _plain(text: str) -> str:
    for latex, sign in ((r"\div", "/"), (r"\times", "*"), (r"\cdot", "*"), ("×", "*"), ("÷", "/"), ("−", "-")):
        text = text.replace(latex, sign)
    return text


def _solves(expression: str, numbers: list[int], target: int) -> bool:
    if len(expression) > _LONGEST or sorted(map(int, re.findall(r"\d+", expression))) != sorted(numbers):
        return False
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body) == target
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False


def _value(node: ast.AST) -> Fraction:
    """Of +, −, ·, / and whole numbers; anything else is a ValueError."""
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    raise ValueError(f"no arithmetic: {ast.dump(node)}")


_QUESTION = re.compile(r"(?:[a-w]=[-+*x\d]+\n)+x mod \d+\?")
_LINE = re.compile(r"[a-w]=\d+(?:[-+*]\d+)*=\d+|" + re.escape(RECHECK))
_THINK_OPEN = re.compile(r"\s*<\|?think\|?>")


def share_well_formed(prompt: str | None, text: str) -> float | None:
    """Of a thought's lines, the share of whole steps and re-checks; of a thought that was cut off, the last line counts
    as it stands. None where the prompt is no chained arithmetic, or the thought holds no line."""
    if prompt is None or not _QUESTION.fullmatch(prompt.strip()):
        return None
    end, begin = THINK_END.search(text), _THINK_OPEN.match(text)
    thought = text[begin.end() if begin else 0 : end.start() if end else len(text)]
    lines = [line.strip() for line in thought.splitlines() if line.strip()]
    return sum(_LINE.fullmatch(line) is not None for line in lines) / len(lines) if lines else None
