"""Checks the regular expressions of a tokenizer.json from elsewhere before the tokenizers library runs them."""

from collections.abc import Iterator
from typing import Any

from lit_illada.errors import UserError

MAX_PATTERN = 10_000  # characters; the longest of known tokenizers has about 1 000


def check_patterns(tokenizer: Any, origin: str) -> None:
    """Refuses patterns that backtrack exponentially because an unbounded repetition contains another, as (a+)+ does.

    tokenizer: the content of tokenizer.json. Not detected: overlapping alternatives, as in (a|a)*; large finite
    repetitions, as in (a{0,99}){0,99}; and patterns of polynomial time, such as a*a*a*b. Possessive and atomic groups,
    which do not backtrack, are refused like others.
    Raises UserError with the file and the pattern.
    """
    for pattern in _patterns(tokenizer):
        if len(pattern) > MAX_PATTERN:
            raise UserError(f"{origin}: a pattern of {len(pattern)} characters; at most {MAX_PATTERN} are allowed")
        if has_nested_repetition(pattern):
            raise UserError(
                f"{origin}: the pattern {pattern[:80]!r} repeats a group that repeats without bound, which can take "
                "exponential time; rewrite it, such as (a+)+ as a+"
            )


def has_nested_repetition(pattern: str) -> bool:
    """Whether a group that contains *, + or {n,} is itself repeated by *, + or {n,}."""
    is_repeating = [False]  # for each open group: whether it contains an unbounded repetition
    position = 0
    while position < len(pattern):
        character = pattern[position]
        was_group = False
        if character == "\\":
            position += 2
        elif character == "[":
            position = _class_end(pattern, position)
        elif character == "(":
            is_repeating.append(False)
            position += 1
            continue
        elif character == ")" and len(is_repeating) > 1:
            was_group = is_repeating.pop()
            position += 1
        else:
            position += 1
        is_unbounded, position = _quantifier(pattern, position)
        if was_group and is_unbounded:
            return True
        is_repeating[-1] |= was_group or is_unbounded
    return False


def _quantifier(pattern: str, position: int) -> tuple[bool, int]:
    """Whether an unbounded quantifier stands here, and the position behind the quantifier, if there is one."""
    is_unbounded = False
    while position < len(pattern) and (character := pattern[position]) in "*+?{":
        if character == "{":
            end = pattern.find("}", position)
            bounds = pattern[position + 1 : end] if end > 0 else ""
            if not bounds.replace(",", "").isdigit():
                break  # a literal brace, or \p{…} read as one item above
            is_unbounded |= bounds.endswith(",")
            position = end + 1
        else:
            is_unbounded |= character in "*+" and not is_unbounded
            position += 1
    return is_unbounded, position


def _class_end(pattern: str, start: int) -> int:
    """The position after a character class. Classes nest, and a ] directly after [ or [^ is literal."""
    depth, position = 0, start
    while position < len(pattern):
        character = pattern[position]
        if character == "\\":
            position += 1
        elif character == "[":
            depth += 1
            position += pattern[position + 1 : position + 2] == "^"
            position += pattern[position + 1 : position + 2] == "]"  # a literal ] where a class begins
        elif character == "]":
            depth -= 1
            if depth == 0:
                return position + 1
        position += 1
    return len(pattern)


def _patterns(node: Any) -> Iterator[str]:
    """Every {"Regex": pattern} of the tree, without recursion: a foreign file may nest deeply."""
    waiting = [node]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if isinstance(item.get("Regex"), str):
                yield item["Regex"]
            waiting += item.values()
        elif isinstance(item, list) and item and isinstance(item[0], dict | list):
            waiting += item
