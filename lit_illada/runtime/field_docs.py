"""Reads the one-line documentation of config fields and enumeration members from their source.

A field is documented by the docstring below it, or by a comment behind it:

    row_length: int = 256
    '''Tokens per packed row.'''
    num_workers: int = 0  # loader processes per rank; 0: read in the training process

Where a field has neither, the entry `row_length: …` of the class docstring counts.
"""

import ast
import inspect
import re
import textwrap
from functools import cache


@cache
def member_docs(cls: type) -> dict[str, str]:
    """Return documentation by name for the documented fields or members of a class and its bases."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("lit_illada."):
            docs |= _docs_of(base)
    return docs


def summary(cls: type) -> str:
    """Return the first sentence of a class's docstring; empty if it has none."""
    text = " ".join((cls.__dict__.get("__doc__") or "").split())
    entry = re.match(r"(\w+): ", text)
    is_generated = text.startswith(f"{cls.__name__}(") and text.endswith(")")  # by dataclass
    if is_generated or (entry and entry[1] in cls.__annotations__):
        return ""
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]


def _docs_of(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    names: list[str] = []
    docs: dict[str, str] = {}
    for statement, below in zip(node.body, [*node.body[1:], None], strict=True):
        target = getattr(statement, "target", None) or (getattr(statement, "targets", None) or [None])[0]
        if not isinstance(target, ast.Name):
            continue
        names.append(target.id)
        _, _, comment = lines[statement.end_lineno - 1][statement.end_col_offset :].partition("#")  # type: ignore[index,operator]
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            docs[target.id] = " ".join(str(below.value.value).split())
        elif comment and not comment.strip().startswith(("type:", "fmt:", "noqa")):
            docs[target.id] = comment.strip()
    return _glossary(" ".join((ast.get_docstring(node) or "").split()), names) | docs


def _glossary(docstring: str, names: list[str]) -> dict[str, str]:
    """Return the entries `name: text` and `name, name: text` of a class docstring."""
    if not names:
        return {}
    name = "|".join(map(re.escape, names))
    heads = list(re.finditer(rf"(?:^|(?<=[.;,:] ))((?:{name})(?:, (?:{name}))*): ", docstring))
    docs: dict[str, str] = {}
    ends = [head.start() for head in heads[1:]] + [len(docstring)]
    for head, end in zip(heads, ends, strict=False):  # without heads there is one end left
        text = docstring[head.end() : end].rstrip(" ,;")
        docs |= dict.fromkeys(head[1].split(", "), text)
    return docs
