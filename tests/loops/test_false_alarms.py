"""Good text raises no alarm, at the rates that were measured."""

import json
import random
import sysconfig
from pathlib import Path

import pytest

from lit_illada.data.sft.config import ReasoningSource
from lit_illada.data.sft.examples import make_examples
from lit_illada.loops.detect.findings import detect
from lit_illada.loops.detect.spans import Kind
from lit_illada.tasks.base import Split


def test_solutions_of_gsm8k_raise_no_alarm(shared_data):
    rows = (shared_data("gsm8k") / "train.jsonl").read_text(encoding="utf-8").splitlines()[::8]
    found = [detect(json.loads(row)["answer"]) for row in rows]
    assert not [item.kinds for item in found if item.kinds]


def test_python_files_seldom_raise_an_alarm():
    found = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    files = [path for path in found if "site-packages" not in path.parts and "test" not in str(path)][:300:3]
    texts = [path.read_text(encoding="utf-8", errors="replace")[:20_000] for path in files]
    found = [detect(text) for text in texts]
    assert sum(Kind.flood in item.kinds for item in found) <= 0.03 * len(files)
    assert sum(Kind.exact in item.kinds for item in found) <= 0.03 * len(files)
    # code repeats itself with small changes; inside fences five copies are asked for
    assert sum(item.is_loop for item in found) <= 0.2 * len(files)
    fenced = [detect(f"```python\n{text}\n```") for text in texts]
    assert sum(item.is_loop for item in fenced) <= 0.05 * len(files)


def test_random_prose_raises_no_alarm(words):
    rng = random.Random(0)
    assert not [True for _ in range(100) if detect(". ".join(words(rng, 400))).kinds]


def table():
    rows = "".join(f"| {a} | {' | '.join(str(a * b) for b in range(1, 11))} |\n" for a in range(1, 21))
    return "| n | " + " | ".join(map(str, range(1, 11))) + " |\n" + "|---" * 11 + "|\n" + rows


def drill():
    rng = random.Random(1)
    rows = [(rng.randint(1, 99), rng.randint(1, 99)) for _ in range(40)]
    return "".join(f"What is {a} plus {b}? The answer to this question is {a + b}.\n" for a, b in rows)


GOOD = {
    "table": table(),
    "drill": drill(),
    "short drill": "".join(f"{a} + {b} = {a + b}\n" for a in range(2, 9) for b in range(2, 9)),
    "ruled headings": "".join(f"{name}\n{'-' * 60}\n# {'=' * 50}\nIt begins with {name}.\n" for name in "ABCDEFGHIJKL"),
    "power": "After 12 doublings there are 1" + "*2" * 12 + " = 4,096 cells.",
    "counting": " ".join(map(str, range(300))),
    "list": "".join(f"- item {word}: see chapter {i}\n" for i, word in enumerate("abcdefghijklmnopqrstuvwxyz")),
}


@pytest.mark.parametrize("name", GOOD)
def test_tables_and_drills_raise_no_alarm(name):
    assert detect(GOOD[name]).kinds == ()


def test_the_reasoning_corpus_contains_no_loop():
    """The gate of every experiment on it: what loops later was not copied from there."""
    source = ReasoningSource(recheck_fraction=0.75, slip_fraction=0.3)
    for difficulty in (source.easy, source.harder):
        for example in make_examples(source, difficulty, Split.TRAIN, 300, 0.1):
            answer = example.messages[-1]
            assert detect(f"{answer.reasoning}\n{answer.content}").kinds == ()


@pytest.mark.slow
def test_no_solution_of_all_gsm8k_raises_an_alarm(shared_data):
    rows = (shared_data("gsm8k") / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 7473
    assert not [row for row in rows if detect(json.loads(row)["answer"]).kinds]
