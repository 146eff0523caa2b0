"""Comparison of two folders of scores, problem by problem."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from lit_illada.errors import UserError
from lit_illada.evaluation.base import Row
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.console import Console
from lit_illada.runtime.files import read_json_lines
from lit_illada.stats.tests import mcnemar, paired_interval


def read_baseline(folder: Path) -> dict[str, Any]:
    """The summary of finished scores to compare with. Raises UserError for a folder without finished scores."""
    run = RunFolder(folder)
    if not run.summary.is_file():
        raise UserError(f"--against {folder}: no scores there; give a folder that `score` has written")
    summary: dict[str, Any] = run.read_summary()
    if "end" not in summary or "results" not in summary:
        raise UserError(f"--against {folder}: not finished scores; finish them with --resume")
    return summary


def compare(folder: Path, results: Sequence[dict[str, Any]], against: Path) -> list[dict[str, Any]]:
    """Accuracy of every evaluation whose problems both folders contain, with the paired difference; prints a table.

    A pair is one problem with the same prompt in both; samples after the first of a problem are not used. The interval
    is that of Bonett and Price (2012), the p value that of McNemar's exact test.

    Raises UserError if the folders have no problem in common. Evaluations that do not check answers, such as multiple
    choice and likelihoods, are left out.
    """
    baseline = read_baseline(against)["results"]
    compared = []
    for result in results:
        rows = _correct(folder, result)
        names = (result["kind"], result.get("file"), result.get("task"))
        twin = next((each for each in baseline if (each["kind"], each.get("file"), each.get("task")) == names), None)
        before = _correct(against, twin) if twin is not None else {}
        common = [key for key in rows if key in before]
        if common:
            compared.append(_comparison(str(names[1] or names[0]), [(before[key], rows[key]) for key in common]))
    if not compared:
        raise UserError(
            f"--against {against}: no problem in common; score the same tasks with the same settings "
            "(multiple choice, likelihoods and lm-eval's tasks are not compared)"
        )
    _show(compared, against)
    return compared


def _correct(folder: Path, result: dict[str, Any]) -> dict[str, bool]:
    """Whether the first answer to each problem is correct, by the problem's prompt and origin."""
    name = result.get("items")
    if name is None:
        return {}
    found: dict[str, bool] = {}
    for row in read_json_lines(folder / name):
        verdict = row.get("is_correct", row.get("is_right"))
        if isinstance(verdict, bool):
            found.setdefault(_key(row), verdict)
    return found


def _key(row: Row) -> str:
    """The problem of a row: of a task, of the run's held-out data, or (the last three names) of a file of numbers."""
    names = ("origin", "prompt", "truth") if "prompt" in row else ("line", "question", "answer")
    return json.dumps([row.get(name) for name in names], default=str)


def _comparison(name: str, pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    table = mcnemar(pairs)
    return {
        "task": name,
        "num_problems": len(pairs),
        "accuracy_before": sum(first for first, _ in pairs) / len(pairs),
        "accuracy": sum(second for _, second in pairs) / len(pairs),
        "difference_95": list(paired_interval(table)),
        "num_lost": table.only_first,
        "num_gained": table.only_second,
        "mcnemar_p": table.p_value,
    }


def _show(compared: Sequence[dict[str, Any]], against: Path) -> None:
    table = Table(title=f"against {against}", title_justify="left")
    for heading in ("task", "problems", "before", "now", "points, 95 % interval", "lost", "gained", "p"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for each in compared:
        low, high = each["difference_95"]
        difference = each["accuracy"] - each["accuracy_before"]
        table.add_row(
            each["task"],
            str(each["num_problems"]),
            f"{each['accuracy_before']:.1%}",
            f"{each['accuracy']:.1%}",
            f"{100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            str(each["num_lost"]),
            str(each["num_gained"]),
            f"{each['mcnemar_p']:.2g}",
        )
    Console().print(table)
