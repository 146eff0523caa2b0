"""Expressions evaluate to what Python's own parser gives, and everything else is rejected."""

import ast
import operator
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.tasks.expression import evaluate

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def reference(expression):
    """The value by Python's syntax tree; None for anything but whole numbers, + - * / and a division by 0."""

    def value(node):
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return Fraction(node.value)
        raise ValueError

    try:
        return value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def result(expression):
    try:
        return evaluate(expression)
    except (ValueError, ZeroDivisionError):
        return None


@given(st.text(alphabet="0123456789+-*/() \t\n", max_size=12))
def test_any_text_is_read_as_python_reads_it(text):
    assert result(text) == reference(text)


def random_expression(rng, depth):
    if depth == 0 or rng.random() < 0.2:
        return str(rng.choice([0, 1, 2, 7, 10, 49]))
    left, right = random_expression(rng, depth - 1), random_expression(rng, depth - 1)
    text = f"{left}{rng.choice(['', ' '])}{rng.choice('+-*/')}{rng.choice(['', ' ', '-'])}{right}"
    return rng.choice([text, f"({text})", f"-({text})", f"(\n{text} )"])


def test_nested_expressions_have_the_value_that_python_computes():
    rng = random.Random(0)
    expressions = [random_expression(rng, 4) for _ in range(2000)]
    assert sum(result(text) is not None for text in expressions) > 1000
    for text in expressions:
        assert result(text) == reference(text), text


@pytest.mark.parametrize(
    "text", ["", "+1", "1+", "2(3)", "(1", "1)", "4 9", "049", "1.5", "1e3", "2**3", "7//2", "٣", "x", "1\n+1", "(1,2)"]
)
def test_other_texts_are_rejected(text):
    assert reference(text) is None
    with pytest.raises(ValueError, match=r"unexpected|expected a number|unclosed"):
        evaluate(text)


def test_the_deepest_nesting_of_a_bounded_text_is_evaluated():
    assert evaluate("(" * 99 + "1" + ")" * 99) == 1
    assert evaluate("-" * 199 + "1") == -1
