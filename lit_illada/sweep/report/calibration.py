"""Calibrates a planned contrast on a pilot sweep: noise floor, spread over seeds, and the seeds that follow."""

import re
from pathlib import Path

from lit_illada.errors import UserError
from lit_illada.runtime.files import write_atomically
from lit_illada.stats.power import MOST_SEEDS, seeds_needed
from lit_illada.sweep.report.collect import Sweep, collect
from lit_illada.sweep.report.findings import MetricFinding, find

_FEWEST = 8  # seeds
_UNIGRAM = "val/unigram_cross_entropy"


def calibrate(path: Path) -> tuple[str, list[str]]:
    """Name of the sweep in a folder, and the calibration of its primary contrast as lines of Markdown.

    Seeds are those with 80 % power for a true difference of equivalence_margin, if paired differences have the largest
    standard deviation of the pilot's comparisons, and at least eight.

    Raises UserError for a sweep without primary_contrast, equivalence_margin or finished replicates.
    """
    sweep = collect(path)
    spec = sweep.spec
    for key in ("primary_contrast", "equivalence_margin", "noise_floor"):
        if getattr(spec, key) is None:
            raise UserError(f"{path}: the sweep has no {key}, so there is nothing to calibrate: set it in its YAML")
    finding = find(sweep, spec.metrics[0])
    effect = finding.effects[0]
    if effect.noise is None or effect.comparison.difference is None or effect.comparison.difference.sd is None:
        raise UserError(f"{path}: {effect.reference} and {effect.arm} need two finished seeds, and a replicate")
    margin, noise = spec.equivalence_margin or 0.0, effect.noise
    differences = [e.comparison.difference for e in finding.effects]
    sd = max(d.sd for d in differences if d is not None and d.sd is not None)
    number = len(finding.effects)
    needed = seeds_needed(margin / sd, number) if sd > 0 else _FEWEST
    unit = finding.unit.of_difference
    is_low = noise.size <= margin / 3
    lines = [
        f"- runs: {_origin(sweep)}, seeds {', '.join(map(str, spec.seeds))}",
        f"- noise floor: {noise.size:.2g} {unit} ({noise.num_replicates} replicates), "
        f"{'at most' if is_low else 'MORE THAN'} a third of the smallest effect that matters ({margin:g})",
        f"- largest standard deviation of the paired differences: s = {sd:.2g} {unit}",
        f"- seeds: n = {f'more than {MOST_SEEDS}' if needed is None else max(_FEWEST, needed)} (80 % power, "
        f"{number} comparison{'s' * (number > 1)}, at least {_FEWEST})",
    ]
    return spec.name, [*lines, *_learnt(sweep, finding)]


def write_calibration(plan: Path, name: str, lines: list[str]) -> None:
    """Replace the entry of a sweep in a plan. Raises UserError if it has none."""
    text = plan.read_text(encoding="utf-8")
    entry = re.compile(rf"(<!-- calibration of {re.escape(name)}\b.*?-->\n).*?(<!-- end -->)", re.DOTALL)
    if not entry.search(text):
        raise UserError(f"{plan}: no entry <!-- calibration of {name} --> … <!-- end -->")
    body = "\n".join(lines)
    write_atomically(plan, entry.sub(lambda match: f"{match[1]}{body}\n{match[2]}", text))


def _origin(sweep: Sweep) -> str:
    """Commits of the finished runs."""
    commits = sorted({commit for record in sweep.records for commit in record.provenance.commits})
    return f"commit {', '.join(c[:8] + '-dirty' * c.endswith('-dirty') for c in commits) or 'unknown'}"


def _learnt(sweep: Sweep, finding: MetricFinding) -> list[str]:
    """Distance of the baseline's bound from the frequency table, if the metric is the bound."""
    baseline = finding.of(sweep.spec.baseline)
    tables = [record.figures[_UNIGRAM] for record in baseline.records.values() if _UNIGRAM in record.figures]
    if finding.metric.name != "val/nll_bound" or not tables or baseline.estimate is None:
        return []
    below = sum(tables) / len(tables) - baseline.estimate.mean
    return [f"- the baseline ends {below:.2f} nats/token below the frequency table (1.5 are required)"]
