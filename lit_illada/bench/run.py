"""The `bench` command: which measurements there are, one table and one JSON of their figures."""

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lit_illada.bench import answers, data, generation, loop, loops, loss
from lit_illada.errors import UserError, unknown

BENCHES: dict[str, Callable[[], dict[str, Any]]] = {
    "data": data.measure,
    "loss": loss.measure,
    "loop": loop.measure,
    "generation": generation.measure,
    "loops": loops.measure,
}


def run(names: Sequence[str], json_file: Path | None, checkpoint: Path | None = None) -> None:
    """Measure and print; without names, everything. checkpoint: a fine-tuned run, whose answers are measured too."""
    benches = dict(BENCHES)
    if checkpoint is not None:
        benches["answers"] = partial(answers.measure, checkpoint)
    elif "answers" in names:
        raise UserError("the benchmark 'answers' needs a fine-tuned run: --checkpoint RUN")
    for name in names:
        if name not in benches:
            raise unknown("benchmark", name, benches)
    results: dict[str, Any] = {"machine": _machine()}
    table = Table(
        title=f"{results['machine']['processor']}, {results['machine']['cores']} threads", title_justify="left"
    )
    for heading in ("figure", "median", "min", "max"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    console = Console()
    for name in names or benches:
        with console.status(f"measuring: {name}"):
            results[name] = benches[name]()
        for path, leaf in _figures(results[name], name):
            table.add_row(path, *(f"{leaf[key]:,.4g}" if key in leaf else "" for key in ("median", "min", "max")))
        if json_file is not None:
            json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    console.print(table)


def _figures(tree: Any, path: str) -> Iterator[tuple[str, dict[str, float]]]:
    if not isinstance(tree, dict):
        yield path, {"median": tree}
    elif "median" in tree:
        yield path, tree
    else:
        for key, child in tree.items():
            yield from _figures(child, f"{path}.{key}")


def _machine() -> dict[str, Any]:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "processor": capabilities.get("cpu_name") or platform.processor() or platform.machine(),
        "cores": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
