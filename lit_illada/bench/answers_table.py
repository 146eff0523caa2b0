"""Table of `bench answers`: for the terminal, and as files with the commit and command of their measurement."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lit_illada.bench.answers import BATCHES, TWIN
from lit_illada.errors import UserError
from lit_illada.run_folder import current_commit
from lit_illada.runtime.files import write_atomically
from lit_illada.schema import dump
from lit_illada.sweep.published import DIRTY, Status

_NOT_WAYS = ("setting", "ratios")


def rows(figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per way and size of batch: the columns of answers.csv."""
    for way, of_way in figures.items():
        if way in _NOT_WAYS:
            continue
        quality = {key: value for key, value in of_way.items() if not key.startswith("batch_")}
        for batch in BATCHES:
            cell = of_way[f"batch_{batch}"]
            over = figures["ratios"].get(f"{way} / {TWIN}, batch {batch}")
            yield {
                "way": way,
                "batch": batch,
                **_spread("tokens_per_s", cell["tokens_per_s"]),
                **_spread("first_token_ms", cell["first_token_ms"]),
                "forwards_per_token": cell["forwards_per_token"],
                **quality,
                **({} if TWIN not in figures else _spread("over_twin", over)),
            }


def table(figures: dict[str, Any]) -> Table:
    """One row per way and size of batch: medians over the repeats."""
    result = Table(title="ways of decoding", title_justify="left", box=SIMPLE_HEAD)
    listed = list(rows(figures))
    shown = {
        "way": "way", "batch": "batch", "tokens_per_s": "tokens/s", "first_token_ms": "first token, ms",
        "forwards_per_token": "forwards per token", "exact_match": "exact match",
        "text_nats_per_token": "texts, nats", "over_twin": "× twin",
    }  # fmt: skip
    columns = {key: heading for key, heading in shown.items() if any(key in row for row in listed)}
    for key, heading in columns.items():
        result.add_column(heading, justify="left" if key == "way" else "right", no_wrap=key == "way")
    for row in listed:
        result.add_row(*(_cell(row.get(key)) for key in columns), end_section=row["batch"] == BATCHES[-1])
    return result


def explanation(figures: dict[str, Any]) -> str:
    """What the ratios depend on."""
    s = figures["setting"]
    lines = [
        f"{s['parameters'] / 1e6:,.1f} M parameters, {s['prompts']} prompts of {s['prompt_tokens']:.0f} tokens on "
        f"average, at most {s['new_tokens']} new tokens in blocks of {s['block_length']}, {s['precision']}, "
        f"{s['device']}, threads: {s['threads']}; by {s['clock']}.",
        "A ratio holds for these sizes and this machine. A denoising step computes the whole block, and without a "
        "cache the whole row; a step of the twin computes one token. The less a forward pass costs per token, as with "
        "small batches, where reading the weights dominates, the more fewer forward passes are worth. Forward passes "
        "per token depend on the confidence of the model, hence on its training and on the texts; cached keys are "
        "outdated, and low thresholds commit tokens that depend on each other: read the quality beside the speed.",
    ]
    if "nats_per_token" in figures["plain"]:
        lines.append("Validation rows: " + "; ".join(_likelihoods(figures)) + ", nats/token ± standard error.")
    if "text_nats_per_token" in figures["plain"]:
        lines.append(
            "texts, nats: nats/token of the continuations under the twin. Texts that repeat themselves are likely too, "
            "so a low value is no proof of quality."
        )
    return "\n".join(lines)


def _likelihoods(figures: dict[str, Any]) -> Iterator[str]:
    for way, kind in (("plain", "bound of the diffusion model"), (TWIN, "twin, exactly")):
        if way in figures:
            yield f"{kind} {figures[way]['nats_per_token']:.2f} ± {figures[way]['nats_stderr']:.2f}"


def write(folder: Path, figures: dict[str, Any], machine: dict[str, Any], command: str) -> None:
    """Write answers.csv, answers.json and status.yaml. Raises UserError for a folder that holds results already."""
    refuse_unusable(folder)
    listed = list(rows(figures))
    columns = list(dict.fromkeys(key for row in listed for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _rounded(value) for key, value in row.items()} for row in listed)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "answers.csv", text.getvalue())
    content = {"machine": machine, "explanation": explanation(figures), **figures}
    write_atomically(folder / "answers.json", json.dumps(content, indent=2) + "\n")
    commit = current_commit() or "unknown"
    status = Status([commit], is_clean=not commit.endswith(DIRTY) and commit != "unknown", command=command)
    write_atomically(folder / "status.yaml", dump(status))


def refuse_unusable(folder: Path) -> None:
    """Raise UserError for a folder that holds a table already or cannot be written, before the measurement."""
    if (folder / "answers.csv").exists():
        raise UserError(f"{folder} holds results already: move or remove them first")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{folder} cannot be written: {existing} is not a writable folder; name another one")


def _spread(name: str, values: dict[str, float] | None) -> dict[str, Any]:
    if values is None:
        return {name: None, f"{name}_min": None, f"{name}_max": None}
    return {name: values["median"], f"{name}_min": values["min"], f"{name}_max": values["max"]}


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)
