"""The packages of loops import one way: detect, then records and outcome, then compare, then report."""

import ast
from pathlib import Path

import pytest

import lit_illada.loops

FOLDER = Path(lit_illada.loops.__file__).parent
TIERS = [{"config", "detect"}, {"files", "records", "answers", "outcome", "parallel"}, {"compare"}, {"report"}]


def tier(name):
    return next(index for index, names in enumerate(TIERS) if name in names)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_tier_imports_only_those_below_it(path):
    name = path.relative_to(FOLDER).parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lit_illada.loops."):
            assert tier(node.module.split(".")[2]) <= tier(name), node.module
