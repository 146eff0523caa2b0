"""Writes summary.json of a training run and prints its summary table."""

import re

import lightning.pytorch as pl
from rich.table import Table

from lit_illada.alignment.passes import TRAINING
from lit_illada.config import AlignConfig, RunConfig, SFTConfig
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.console import Console
from lit_illada.training.run_module import RunModule

_EXACT_MATCH = "val/exact_match_"
_BY_DIFFICULTY = re.compile(r"val/accuracy_(?!low$|high$|change)")
_ROWS = {
    "NLL bound, nats/token": "val/nll_bound",
    "  standard error": "val/nll_bound_stderr",
    "unigram model, nats/token": "val/unigram_cross_entropy",
    "bits per byte": "val/bits_per_byte",
}


_ALIGN_ROWS = {
    "loops": "val/loop_rate",
    "loops or no end": "val/endless_rate",
    "tokens": "val/length",
}
_PAIR_ROWS = {"margin of the chosen answer, nats": "val/margin"}


def append_summary(folder: RunFolder, key: str, trainer: pl.Trainer, module: RunModule, cost: dict[str, float]) -> None:
    """Add the metrics of this step under `key` ("start" or "end"); rank 0 only.

    Validation metrics are left out where the last validation was at an earlier step. cost: of the run so far, written
    as perf/….
    """
    if not trainer.is_global_zero:
        return
    is_validated = module.validated_at == trainer.global_step
    metrics = {name: value for name, value in trainer.callback_metrics.items() if is_validated or "val" not in name}
    figures = folder.read_summary()
    figures[key] = {name: float(value) for name, value in sorted(metrics.items())}
    figures[key] |= {f"perf/{name}": value for name, value in cost.items()}
    figures[key]["step"] = trainer.global_step
    folder.write_summary(figures)


def print_summary(
    folder: RunFolder, trainer: pl.Trainer, config: RunConfig, elapsed_s: float, is_finished: bool, console: Console
) -> None:
    """Print validation metrics of the start and the end, and the commands that use the run next."""
    figures = folder.read_summary()
    start, end = figures.get("start", {}), figures["end"]
    table = Table(title=f"{folder.path}, step {trainer.global_step}, {elapsed_s:.0f} s", title_justify="left")
    table.add_column("validation")
    for heading in ("at the start", "now"):
        table.add_column(heading, justify="right")
    is_align = isinstance(config, AlignConfig)
    is_pairs = isinstance(config, AlignConfig) and config.preferences is not None
    if is_align:
        table.add_row("accuracy, held-out", *(_interval(values, "val/accuracy") for values in (start, end)))
        if not is_pairs:
            table.add_row("  change, paired", "", _interval(end, "val/accuracy_change"))
        for name in filter(_BY_DIFFICULTY.match, end):
            level = name.removeprefix("val/accuracy_").replace("_", " ")
            table.add_row(f"  {level}", *(f"{values[name]:.1%}" if name in values else "–" for values in (start, end)))
    for label, name in (_PAIR_ROWS if is_pairs else _ALIGN_ROWS if is_align else _ROWS).items():
        table.add_row(label, *(f"{values[name]:.4f}" if name in values else "–" for values in (start, end)))
    if is_align and (forwards := end.get("perf/forwards")):
        parts = [f"{phase} {end[f'perf/forwards_{phase}'] / forwards:.0%}" for phase in TRAINING]
        table.add_row("forward passes", "", f"{forwards:,.0f} ({', '.join(parts)})")
    levels = [name.removeprefix(_EXACT_MATCH) for name in end if name.startswith(_EXACT_MATCH) and f"{name}_low" in end]
    for level in levels:
        intervals = (_interval(values, f"{_EXACT_MATCH}{level}") for values in (start, end))
        table.add_row(f"exact match, {level} problems", *intervals)
    console.print(table)
    lines = {"curves": f"lit-illada board {folder.path.parent}"}
    if is_align:
        command = "align"
        # a run on pairs generates nothing
        lines |= {} if is_pairs else {"answers": str(folder.answers), "samples": str(folder.samples)}
    elif isinstance(config, SFTConfig):
        command = "sft"
        lines |= {"answers": str(folder.answers)}
    else:
        command = "pretrain"
        lines |= {"samples": str(folder.samples), "generate": f"lit-illada generate {folder.path} --prompt 'import '"}
    if not is_finished:
        lines["stopped"] = f"resume with: lit-illada {command} --resume {folder.path}"
    for label, text in lines.items():
        console.print(f"{label:<12} {text}", highlight=False, soft_wrap=True)


def _interval(values: dict[str, float], name: str) -> str:
    if f"{name}_low" not in values:
        return f"{values[name]:.1%}" if name in values else "–"
    return f"{values[name]:.1%} ({values[f'{name}_low']:.0%}–{values[f'{name}_high']:.0%})"
