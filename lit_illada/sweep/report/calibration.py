"""Calibrates a planned contrast on a pilot sweep: noise floor, spread over seeds, and the seeds that follow."""

import re
from math import isfinite, nan, sqrt
from pathlib import Path
from statistics import mean, variance

from lit_illada.errors import UserError
from lit_illada.runtime.files import write_atomically
from lit_illada.stats.power import MOST_SEEDS, seeds_needed
from lit_illada.sweep.report.collect import Sweep, collect
from lit_illada.sweep.report.effects import NoiseFloor
from lit_illada.sweep.report.findings import MetricFinding, find
from lit_illada.sweep.report.wording import Unit
from lit_illada.sweep.spec import Arm
from lit_illada.sweep.variants import tuning_arms

_FEWEST = 8  # seeds
_UNIGRAM = "val/unigram_cross_entropy"


def calibrate(path: Path) -> tuple[str, list[str]]:
    """Name of the sweep in a folder, and the calibration of its contrasts as lines of Markdown.

    Seeds are those with 80 % power for a true difference of equivalence_margin, if paired differences have the largest
    standard deviation of the comparisons, and at least eight. The comparisons are those of the arms, or as long as
    these have not run, those of the tuning runs at equal values of the tuned key.

    Raises UserError for a sweep without primary_contrasts or equivalence_margin, or with fewer than two finished seeds.
    """
    sweep = collect(path)
    spec = sweep.spec
    for key in ("primary_contrasts", "equivalence_margin"):
        if not getattr(spec, key):
            raise UserError(f"{path}: the sweep has no {key}, so there is nothing to calibrate: set it in its YAML")
    finding = find(sweep, spec.metrics[0])
    margin, number = spec.equivalence_margin or 0.0, len(finding.effects)
    differences = [effect.comparison.difference for effect in finding.effects]
    of_arms = [each.sd for each in differences if each is not None and each.sd is not None]
    of_tuning = [] if of_arms else _tuning_spread(sweep)
    if not of_arms and not of_tuning:
        raise UserError(f"{path}: the paired differences need two finished seeds of {spec.baseline} and another arm")
    sd = max(of_arms or of_tuning)
    needed = seeds_needed(margin / sd, number) if sd > 0 else _FEWEST
    seeds = spec.seeds if of_arms or spec.tune is None else spec.tune.seeds
    lines = [
        f"- runs: {_origin(sweep)}, {'seeds' if of_arms else 'tuning seeds'} {', '.join(map(str, seeds))}",
        _noise_line(finding.noise, margin, finding.unit),
        f"- largest standard deviation of the paired differences: s = {_shown(sd, finding.unit)}",
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


def _tuning_spread(sweep: Sweep) -> list[float]:
    """Standard deviation of each arm's paired differences at equal values of the tuned key, pooled over the values."""
    spec = sweep.spec
    metric = spec.metrics[0]

    def ends(arm: Arm) -> dict[float, dict[int | None, float]]:
        return {
            value: {seed: end for seed, r in records.items() if isfinite(end := r.figures.get(metric.name, nan))}
            for value, tried in tuning_arms(spec, arm).items()
            if (records := sweep.of_arm(tried.name, metric.stage))
        }

    baseline, *others = sorted(spec.all_arms(), key=lambda arm: arm.name != spec.baseline)
    reference, spreads = ends(baseline), list[float]()
    for arm in others:
        variances = list[float]()
        for value, of_seed in ends(arm).items():
            shared = of_seed.keys() & reference.get(value, {}).keys()
            if len(shared) > 1:
                variances.append(variance(of_seed[seed] - reference[value][seed] for seed in shared))
        if variances:
            spreads.append(sqrt(mean(variances)))
    return spreads


def _shown(size: float, unit: Unit) -> str:
    """A size with its unit, to two significant digits."""
    return f"{unit.factor * size:.2g} {unit.of_difference}"


def _noise_line(noise: NoiseFloor | None, margin: float, unit: Unit) -> str:
    if noise is None:
        return "- noise floor: no rounding replicate has finished"
    is_low = noise.size <= margin / 3
    return (
        f"- noise floor: {_shown(noise.size, unit)} ({noise.num_replicates} replicates), "
        f"{'at most' if is_low else 'MORE THAN'} a third of the smallest effect that matters ({_shown(margin, unit)})"
    )


def _origin(sweep: Sweep) -> str:
    """Commits of the finished runs."""
    commits = sorted({commit for record in sweep.records for commit in record.provenance.commits})
    return f"commit {', '.join(c[:8] + '-dirty' * c.endswith('-dirty') for c in commits) or 'unknown'}"


def _learnt(sweep: Sweep, finding: MetricFinding) -> list[str]:
    """Distance of the baseline's bound from the unigram cross-entropy, if the metric is the bound."""
    baseline = finding.of(sweep.spec.baseline)
    tables = [record.figures[_UNIGRAM] for record in baseline.records.values() if _UNIGRAM in record.figures]
    if finding.metric.name != "val/nll_bound" or not tables or baseline.estimate is None:
        return []
    below = sum(tables) / len(tables) - baseline.estimate.mean
    return [f"- the baseline ends {below:.2f} nats/token below the unigram cross-entropy (1.5 are required)"]
