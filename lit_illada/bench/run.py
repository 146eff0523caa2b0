"""Implementation of `lit-illada bench`: runs benchmarks and reports a table and a JSON of their figures."""

import json
import platform
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from lit_illada.bench import (
    adapt,
    answers,
    answers_table,
    data,
    generation,
    gpu,
    loop,
    loops,
    loss,
    peers,
    plain,
    startup,
    step,
)
from lit_illada.bench.figure import attempted
from lit_illada.bench.peer_programs import PROGRAMS
from lit_illada.bench.revision import code_of
from lit_illada.errors import UserError, unknown
from lit_illada.generation.commit_rules import Threshold
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.console import Console

BENCHES: dict[str, Callable[[], dict[str, Any]]] = {
    "data": data.measure,
    "step": step.measure,
    "plain": plain.measure,
    "adapt": adapt.measure,
    "loss": loss.measure,
    "loop": loop.measure,
    "generation": generation.measure,
    "answers": answers.measure,
    "loops": loops.measure,
    "startup": startup.measure,
}
_LONGEST_PATH = 40  # characters; a benchmark with longer paths has a line for what its figures share


@dataclass(frozen=True)
class AnswersOptions:
    """Options of the benchmark `answers`."""

    checkpoint: Path | None = None
    """Diffusion run; None: the models of sweeps/loop_base."""
    twin: Path | None = None
    """Autoregressive checkpoint with the same tokenizer; None: no twin."""
    new_tokens: int | None = None
    """Tokens per text; None: as in the run's config."""
    thresholds: Sequence[float] = ()
    """Confidence thresholds; empty: the default ones."""
    repeats: int | None = None
    """Measurements of every figure; None: the default."""
    out: Path | None = None
    """Folder for the table and its commit; None: none is written."""

    def check(self, names: Sequence[str]) -> None:
        """Raise UserError for options without their benchmark, and for files that cannot be used."""
        if self.checkpoint is not None:
            RunFolder.open(self.checkpoint)
        elif self.twin is not None:
            raise UserError(f"--twin {self.twin} is the twin of a run: give that run by --checkpoint RUN")
        if names and "answers" not in names and self != AnswersOptions():
            raise UserError(
                "--checkpoint, --twin, --new-tokens, --threshold, --repeats and --out apply to the benchmark answers: "
                "lit-illada bench answers --checkpoint RUN"
            )
        for threshold in self.thresholds:
            Threshold(threshold)
        if self.out is not None:
            answers_table.refuse_unusable(self.out)

    def measure(self) -> dict[str, Any]:
        """The figures."""
        given = {"repeats": self.repeats, "thresholds": self.thresholds or None}
        set_ones: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return answers.measure(self.checkpoint, self.twin, new_tokens=self.new_tokens, **set_ones)

    @property
    def command(self) -> str:
        """Command line that measures the same."""
        given: list[tuple[str, Any]] = [
            ("--checkpoint", self.checkpoint),
            ("--twin", self.twin),
            ("--new-tokens", self.new_tokens),
            *(("--threshold", threshold) for threshold in self.thresholds),
            ("--repeats", self.repeats),
            ("--out", self.out),
        ]
        words = [word for option, value in given if value is not None for word in (option, str(value))]
        return shlex.join(["lit-illada", "bench", "answers", *words])


def run(
    names: Sequence[str],
    json_file: Path | None,
    options: AnswersOptions = AnswersOptions(),
    profile: Path | None = None,
    is_dry_run: bool = False,
    own_peers: Sequence[str] = (),
    against: str | None = None,
) -> None:
    """Runs the named benchmarks, or all, and prints the figures, or why a benchmark could not run.

    json_file: file for the figures; None: none is written.
    options: options of the benchmark `answers`.
    profile: folder for the trace and tables of a training step; None: no profile.
    is_dry_run: whether `gpu` runs at tiny sizes on the CPU.
    own_peers: the user's programs for `peers`, each NAME=FILE.
    against: git revision; `startup` then compares its commands with those of this code.
    Raises UserError, after the last benchmark, if one of `names` did not run.
    """
    benches = _chosen(names, options, profile, is_dry_run, own_peers, against)
    machine, results = _machine(), {}
    console = Console()
    try:
        for name in names or benches:
            with console.status(Text(f"measuring: {name}")):
                results[name] = attempted(benches[name])
            # after each benchmark, so that a crash does not lose the earlier figures
            if json_file is not None:
                json_file.write_text(json.dumps({"machine": machine, **results}, indent=2) + "\n", encoding="utf-8")
            if name == "answers" and options.out is not None and "setting" in results[name]:
                answers_table.write(options.out, results[name], machine, options.command)
    finally:  # after Ctrl-C, the figures measured so far
        _print(console, machine, results)
    if failed := [name for name in names if "did_not_run" in results[name]]:
        raise UserError(f"the benchmark {failed[0]!r} did not run: {results[failed[0]]['did_not_run']}")


def _chosen(
    names: Sequence[str],
    options: AnswersOptions,
    profile: Path | None,
    is_dry_run: bool,
    own_peers: Sequence[str] = (),
    against: str | None = None,
) -> dict[str, Callable[[], dict[str, Any]]]:
    benches = dict(BENCHES)
    options.check(names)
    if options != AnswersOptions():
        benches["answers"] = options.measure
    if "peers" in names:  # installs packages, so only by name
        benches["peers"] = partial(peers.measure, own=_own_peers(own_peers))
    elif own_peers:
        raise UserError("--peer applies to the benchmark peers: lit-illada bench peers --peer NAME=FILE")
    if against is not None:
        if names and "startup" not in names:
            raise UserError("--against applies to the benchmark startup: lit-illada bench startup --against REVISION")
        with code_of(against):
            pass  # a revision without the code is refused before anything is measured
        benches["startup"] = partial(startup.compare, against)
    if torch.cuda.is_available() or "gpu" in names:
        benches["gpu"] = partial(gpu.measure, is_dry_run=is_dry_run, profile=profile)
        if not names:
            del benches["step"]  # `gpu` includes training steps
    elif is_dry_run:
        raise UserError("--dry-run applies to the benchmark gpu: lit-illada bench gpu --dry-run")
    if profile is not None:
        if "step" in benches:
            benches["step"] = partial(step.measure, profile)
        if names and not {"step", "gpu"} & set(names):
            raise UserError("--profile applies to training steps: lit-illada bench step --profile FOLDER")
    for name in names:
        if name not in benches:
            raise unknown("benchmark", name, [*benches, "gpu", "peers"])
    return benches


def _own_peers(words: Sequence[str]) -> dict[str, Path]:
    """The user's programs by name. Raises UserError for a word that is not NAME=FILE or names no file."""
    own = {}
    for word in words:
        name, _, file = word.partition("=")
        if not name or not file or name == "ours" or name in PROGRAMS:
            raise UserError(f"--peer {word!r}: write NAME=FILE, with another name than ours, {', '.join(PROGRAMS)}")
        if not Path(file).is_file():
            raise UserError(f"--peer {word}: {file} is no file")
        own[name] = Path(file)
    return own


def _print(console: Console, machine: dict[str, Any], results: dict[str, Any]) -> None:
    """Print the figures; those of `answers` as a table of their own."""
    decoding = results.get("answers", {})
    has_table = "setting" in decoding
    others = {name: figures for name, figures in results.items() if name != "answers" or not has_table}
    if others:
        console.print(_table(machine, others))
    if has_table:
        console.print(answers_table.table(decoding))
        console.print(answers_table.explanation(decoding), highlight=False)


def _table(machine: dict[str, Any], results: dict[str, Any]) -> Table:
    table = Table(title=f"{machine['processor']}, {machine['cores']} threads", title_justify="left")
    for heading in ("figure", "median", "min", "max"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for name, figures in results.items():
        leaves, group = list(_figures(figures, (name,))), None
        is_grouped = any(len(".".join(path)) > _LONGEST_PATH for path, _ in leaves)
        for path, leaf in leaves:
            if is_grouped and path[:-1] != group:
                group = path[:-1]
                table.add_section()
                table.add_row(Text(".".join(group), style="bold"))
            heading = f"  {path[-1]}" if is_grouped else ".".join(path)
            table.add_row(heading, *(_cell(leaf[key]) if key in leaf else "" for key in ("median", "min", "max")))
    return table


def _cell(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _figures(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if not isinstance(tree, dict):
        yield path, {"median": tree}
    elif "median" in tree:
        yield path, tree
    else:
        for key, child in tree.items():
            yield from _figures(child, (*path, key))


def _machine() -> dict[str, Any]:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "processor": capabilities.get("cpu_name") or platform.processor() or platform.machine(),
        "cores": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
