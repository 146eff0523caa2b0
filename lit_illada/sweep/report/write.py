"""Writes the report of a sweep: a self-contained page, with tables and figures beside it.

Reads the sweep's files, during or after its execution, without torch.
"""

import base64
import gzip
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lit_illada import __version__
from lit_illada.report.page import render_page, script_json
from lit_illada.report.palette import Look, looks_of
from lit_illada.report.pictures import draw
from lit_illada.report.plots import PlotFigure
from lit_illada.runtime.durations import duration
from lit_illada.runtime.files import write_atomically
from lit_illada.stats.comparisons import Finding
from lit_illada.sweep.design import TEST, correction_text, describe
from lit_illada.sweep.folder import RunState
from lit_illada.sweep.report.collect import RunRecord, Sweep, collect
from lit_illada.sweep.report.figures import (
    course_figure,
    gradient_figure,
    metric_figures,
    ratio_figure,
)
from lit_illada.sweep.report.findings import MetricFinding, find
from lit_illada.sweep.report.strip import strips
from lit_illada.sweep.report.tables import costs, tuning_rows, write_tables
from lit_illada.sweep.report.wording import MISSING, amount, left_out, p_value, unit_of
from lit_illada.sweep.spec import Measure, SweepSpec
from lit_illada.sweep.variants import is_tuning, read_choice

_PAGE = Path(__file__).parent / "page"
_BOUND = "val/nll_bound"


@dataclass(frozen=True)
class Section:
    """Section of the page about one metric."""

    finding: MetricFinding
    figures: list[PlotFigure]
    strips: dict[str, Markup]


def write_report(path: Path, out: Path | None = None, now: datetime | None = None) -> tuple[Path, list[str]]:
    """Write the report. Returns the page's file and the findings as lines of text.

    Args:
        path: folder of the sweep.
        out: folder of the report; None: `report` in the sweep's folder.
        now: time printed on the page; None: the current time.

    Raises:
        UserError: the folder holds no sweep.
    """
    sweep = collect(path)
    out = out or sweep.folder.report
    out.mkdir(parents=True, exist_ok=True)
    looks = looks_of([arm.name for arm in sweep.spec.all_arms()], sweep.spec.baseline)
    sections = [_section(sweep, find(sweep, metric), looks) for metric in sweep.spec.metrics]
    curves, others = _course_figures(sweep, looks), _other_figures(sweep, looks)
    figures = [*(figure for section in sections for figure in section.figures), *curves, *others]
    write_tables(out, sweep, [section.finding for section in sections])
    for figure in figures:
        draw(figure, out / f"{figure.id}.png")
    file = out / "index.html"
    write_atomically(file, render_page(_PAGE, _content(sweep, looks, sections, curves, others, now), _filters(out)))
    design = [
        f"{heading}: {text}" for heading, text in describe(sweep.spec, read_choice(sweep.folder, sweep.spec)).items()
    ]
    return file, [_state_text(sweep), *design, *(line for section in sections for line in _plain(section.finding))]


def _content(
    sweep: Sweep,
    looks: dict[str, Look],
    sections: list[Section],
    curves: list[PlotFigure],
    others: list[PlotFigure],
    now: datetime | None,
) -> dict[str, Any]:
    """Variables of the template."""
    figures = [*(figure for section in sections for figure in section.figures), *curves, *others]
    return {
        "sweep": sweep,
        "spec": sweep.spec,
        "looks": looks,
        "arm_numbers": {arm.name: number for number, arm in enumerate(sweep.spec.all_arms())},
        "metrics": sections,
        "curves": curves,
        "others": others,
        "costs": costs(sweep),
        "absent": [record for record in sweep.records if record.state is not RunState.FINISHED],
        "states": Counter(record.state.value for record in sorted(sweep.records, key=_by_progress)),
        "state_text": _state_text(sweep),
        "budget": _budget_text(sweep.spec),
        "warnings": [*_warnings(sweep), *_not_finite([section.finding for section in sections])],
        "leading": _leading(sections[0].finding, sweep.spec),
        "checks": sections[0].finding.checks,
        "design": describe(sweep.spec, read_choice(sweep.folder, sweep.spec)),
        "tuning": tuning_rows(sweep),
        "test": TEST,
        "correction": correction_text(sweep.spec),
        "pictures": [f"{figure.id}.png" for figure in figures],
        "figures_json": script_json([figure.to_tree() for figure in figures]),
        "library": _plotting_library(),
        "made_at": f"{now or datetime.now():%Y-%m-%d %H:%M}",
        "version": __version__,
    }


def _plain(finding: MetricFinding) -> list[str]:
    """One line per arm, further comparison and check."""
    kind = "primary" if finding.is_primary else "descriptive"
    lines = [f"{finding.metric.name} after {finding.metric.stage}, {finding.metric.goal} is better ({kind}):"]
    width = max(len(arm.arm) for arm in finding.arms)
    for arm in finding.arms:
        mean = finding.unit.value(arm.estimate.mean if arm.estimate else None)
        lines.append(f"  {arm.arm:<{width}}  {mean:>8}  {arm.verdict}")
    pairs = [f"  {pair.first} → {pair.second}: {pair.verdict}" for pair in finding.pairs]
    if finding.noise is not None:
        number = finding.noise.num_replicates
        floor = f"{finding.unit.noise(finding.noise.size)} {finding.unit.of_difference}".strip()
        pairs.append(f"  noise floor {floor} ({number} rounding replicates)")
    return [*lines, *pairs, *(f"  check: {check.text}" for check in finding.checks)]


@cache
def _plotting_library() -> str:
    """Plotly's code as gzip in base64, which the browser unpacks; this reduces the page to a third of its size."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 6, mtime=0)).decode()


def _section(sweep: Sweep, finding: MetricFinding, looks: dict[str, Look]) -> Section:
    return Section(finding, metric_figures(sweep, finding, looks), strips(finding, looks, sweep.spec.cannot_learn))


def _course_figures(sweep: Sweep, looks: dict[str, Look]) -> list[PlotFigure]:
    """Learning curves of the bound and of every metric that has one, in stages where arms differ."""
    stages = sweep.differing_stages()
    curves = [(metric.name, metric.stage) for metric in sweep.spec.metrics if metric.stage in stages]
    curves += [(_BOUND, stage) for stage in stages]
    figures = [course_figure(sweep, tag, stage, unit_of(tag, []), looks) for tag, stage in dict.fromkeys(curves)]
    return [figure for figure in figures if figure is not None]


def _other_figures(sweep: Sweep, looks: dict[str, Look]) -> list[PlotFigure]:
    figures = [
        make(sweep, stage, looks) for stage in sweep.differing_stages() for make in (ratio_figure, gradient_figure)
    ]
    return [figure for figure in figures if figure is not None]


def _filters(out: Path) -> dict[str, Callable[..., str]]:
    return {
        "amount": amount,
        "duration": lambda seconds: MISSING if seconds is None else duration(seconds),
        "p": lambda p: p_value(p).removeprefix("p ").removeprefix("= "),
        "short": lambda digest: digest[:8] + ("-dirty" if digest.endswith("-dirty") else ""),
        "config_link": lambda record: _link(record.provenance.config, out),
        "absence": _absence,
    }


def _link(file: Path, out: Path) -> str:
    """Link relative to the page, so that the sweep's folder can be moved."""
    return Path(os.path.relpath(file.resolve(), out.resolve())).as_posix()


def _absence(record: RunRecord) -> str:
    """Reason why a run has no numbers."""
    progress = record.progress
    at = f" at step {progress['step']} of {progress['max_steps']}" if "step" in progress else ""
    match record.state:
        case RunState.FAILED:
            return f"failed with exit status {record.failure.get('exit_status', '?')}{at}"
        case RunState.RUNNING:
            return f"is running{at}"
        case RunState.INTERRUPTED:
            return f"was interrupted{at}"
        case _:
            return "has not started"


def _by_progress(record: RunRecord) -> int:
    order = [RunState.FINISHED, RunState.RUNNING, RunState.INTERRUPTED, RunState.FAILED, RunState.PENDING]
    return order.index(record.state)


def _state_text(sweep: Sweep) -> str:
    states = Counter(record.state for record in sweep.records)
    finished = states.pop(RunState.FINISHED, 0)
    words = {RunState.PENDING: "not started"}
    rest = [f"{count} {words.get(state, state.value)}" for state, count in states.items()]
    text = ", ".join([f"{finished} of {len(sweep.records)} runs finished", *rest])
    return f"tuning: {text}" if is_tuning(sweep.spec, [record.run for record in sweep.records]) else text


def _budget_text(spec: SweepSpec) -> str:
    if spec.budget is None:
        return f"The arms have no common budget: {spec.no_budget}" if spec.no_budget else ""
    unit = {Measure.FLOPS: "FLOPs", Measure.FORWARDS: "forward passes"}.get(spec.budget.measure, spec.budget.measure)
    return f"Training budget of each run: {amount(spec.budget.amount)} {unit} (stage {spec.budget_stage})."


def _warnings(sweep: Sweep) -> list[str]:
    """Unplanned differences between runs, such as several commits."""
    warnings = []
    commits = {commit for record in sweep.records for commit in record.provenance.commits}
    if len(commits) > 1:
        warnings.append(f"The runs are from {len(commits)} commits: {', '.join(sorted(c[:8] for c in commits))}.")
    elif any(commit.endswith("-dirty") for commit in commits):
        warnings.append("The code had uncommitted changes.")
    for stage in sweep.spec.stages:
        records = [record for record in sweep.records if record.run.stage == stage.name]
        by_seed: dict[int | None, set[str]] = {}
        for record in records:
            # where each seed has data of its own, arms are compared on equal data if those of a seed are equal
            seed = record.run.seed if stage.seeded else None
            by_seed.setdefault(seed, set()).update(record.provenance.data_sha256)
        if differing := [sorted(hashes) for hashes in by_seed.values() if len(hashes) > 1]:
            listed = ", ".join(digest[:8] for digest in differing[0])
            at = " at equal seeds" if stage.seeded else ""
            warnings.append(
                f"The runs of {stage.name} read different data{at} ({listed}): arms also differ in their data."
            )
    return warnings


def _not_finite(findings: Sequence[MetricFinding]) -> list[str]:
    """Arms whose comparison covers only the seeds that did not diverge, which favours them."""
    return [
        f"{arm.arm}: {left_out(arm.num_not_finite, len(arm.values) + arm.num_not_finite, finding.metric.name)}."
        for finding in findings
        for arm in finding.arms
        if arm.num_not_finite
    ]


def _leading(finding: MetricFinding, spec: SweepSpec) -> dict[str, list[str]]:
    """Arms by verdict, for the summary at the top of the page."""
    relations = {
        Finding.BETTER: f"better than {spec.baseline}",
        Finding.WORSE: f"worse than {spec.baseline}",
        Finding.NOT_SEPARABLE: f"not separable from {spec.baseline}",
        Finding.NOT_TESTED: f"not tested against {spec.baseline}",
        Finding.BELOW_NOISE: f"from {spec.baseline} by less than the noise floor",
    }
    by_verdict = {}
    for kind, words in relations.items():
        if arms := [arm.arm for arm in finding.arms if arm.comparison and arm.comparison.finding is kind]:
            by_verdict[words] = arms
    for pair in finding.pairs:
        if pair.comparison.finding in (Finding.BETTER, Finding.WORSE):
            by_verdict.setdefault(f"{pair.comparison.finding} than {pair.first}", []).append(pair.second)
    return by_verdict
