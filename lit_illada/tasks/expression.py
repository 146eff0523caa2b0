"""Exact evaluation of arithmetic expressions with a recursive-descent parser."""

import operator
import re
from collections.abc import Callable
from fractions import Fraction

_OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


def evaluate(expression: str) -> Fraction:
    """The exact value of an expression of whole numbers, + - * / and parentheses.

    Raises ValueError for any other text, ZeroDivisionError for a division by 0. Recursion is as deep as the nesting of
    parentheses, so the length of untrusted text must be bounded by the caller.
    """
    tokens = _tokens(expression)
    value = _sum(tokens)
    if tokens:
        raise ValueError(f"unexpected {tokens[-1]!r}")
    return value


def _tokens(expression: str) -> list[str]:
    """The tokens in reverse order, so that the next one is popped from the end."""
    # As in Python, numbers have no leading zeros and line breaks are allowed inside parentheses only.
    tokens, depth = [], 0
    for token in re.findall(r"[1-9][0-9]*|0+(?![1-9])|[^ \t\f]", expression.strip()):
        depth += (token == "(") - (token == ")")
        if depth == 0 or token not in "\r\n":
            tokens.append(token)
    return tokens[::-1]


def _sum(tokens: list[str]) -> Fraction:
    value = _product(tokens)
    while tokens and tokens[-1] in "+-":
        value = _OPERATORS[tokens.pop()](value, _product(tokens))
    return value


def _product(tokens: list[str]) -> Fraction:
    value = _factor(tokens)
    while tokens and tokens[-1] in "*/":
        value = _OPERATORS[tokens.pop()](value, _factor(tokens))
    return value


def _factor(tokens: list[str]) -> Fraction:
    """A number, an expression in parentheses, or the negative of either."""
    sign = 1
    while tokens and tokens[-1] == "-":
        tokens.pop()
        sign = -sign
    token = tokens.pop() if tokens else "the end"
    if token == "(":
        value = _sum(tokens)
        if not tokens or tokens.pop() != ")":
            raise ValueError("unclosed parenthesis")
        return sign * value
    if not (token.isascii() and token.isdecimal()):
        raise ValueError(f"expected a number, not {token!r}")
    return sign * Fraction(token)
