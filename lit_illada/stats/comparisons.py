"""Verdicts on many arms of an experiment, each against a reference on the same seeds.

Two runs of one seed see the same data in the same order from the same initial weights, so their difference varies less
than either: arms are compared by a two-sided paired t test over seeds with moderated variances (`moderated.py`).
Holm's correction over all planned comparisons keeps the chance of any false verdict at LEVEL. Comparisons that answer
the question can be tested first, corrected among themselves; the others are then tested only if all of these have a
corrected p of at most LEVEL, which keeps that chance (serial gatekeeping, Westfall and Krishen 2001). Variances are
moderated within the comparisons that are corrected together, so a single comparison that is tested first has Student's
t test: if it borrowed the variance of others and had a larger one itself, its chance of a false verdict would exceed
LEVEL.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite, nan, sqrt

import numpy as np
from scipy.special import stdtr, stdtrit

from lit_illada.stats.intervals import LEVEL, Estimate, estimate
from lit_illada.stats.moderated import moderate
from lit_illada.stats.power import seeds_needed_range, visible_effect
from lit_illada.stats.tests import holm

# differences that agree to this relative precision are one number, rounded, and not a sample of noise
_RELATIVE_NOISE = 1e-9


class Finding(StrEnum):
    """What the seeds say about a difference."""

    BETTER = "better"
    WORSE = "worse"
    NOT_SEPARABLE = "not separable"
    NOT_TESTED = "not tested"  # since a comparison that comes first is not separable
    BELOW_NOISE = "below the noise floor"  # separable, but smaller than the differences that rounding causes
    DESCRIPTIVE = "descriptive"  # of a metric that carries no verdict
    CONSTANT = "constant"  # the same at every seed: there is no variance to test against
    UNPAIRED = "unpaired"  # fewer than two seeds in common


Seed = int | None  # None: one run that stands for every seed
Values = Mapping[Seed, float]
Pairs = Mapping[Seed, tuple[float, float]]
Names = tuple[str, str]  # (reference, arm)


@dataclass(frozen=True)
class Comparison:
    """An arm against a reference on their common seeds."""

    seeds: tuple[Seed, ...]
    difference: Estimate | None  # arm − reference; the interval has the moderated variance, sd is the observed one
    standard_error: float | None  # of the mean difference, moderated; None where nothing can be tested
    dof: float | None  # degrees of freedom of the moderated variance
    p: float | None  # uncorrected; None where nothing is tested
    p_holm: float | None  # corrected for num_comparisons; if tested second, at least the largest of those tested first
    finding: Finding
    num_comparisons: int  # planned, and tested together

    @property
    def seeds_needed(self) -> tuple[int, int | None] | None:
        """From (largest plausible effect) to (smallest); None where the 95 % interval holds 0, or nothing is tested."""
        if self.p is None or self.difference is None or not self.standard_error or self.dof is None:
            return None
        if self.finding is Finding.NOT_TESTED:
            return None
        t = self.difference.mean / self.standard_error
        return seeds_needed_range(t, self.dof, len(self.seeds), self.num_comparisons)

    @property
    def smallest_visible(self) -> float | None:
        """The true difference that these seeds find with 80 % power, if their moderated variance is the true one."""
        if self.p is None or not self.standard_error or self.finding is Finding.NOT_TESTED:
            return None
        n = len(self.seeds)
        return self.standard_error * sqrt(n) * visible_effect(n, self.num_comparisons)

    def p_equivalent(self, margin: float) -> float | None:
        """p value of the two one-sided tests (Schuirmann 1987) of a true difference beyond ± margin."""
        if self.difference is None or not self.standard_error or self.dof is None:
            return None
        return float(stdtr(self.dof, (abs(self.difference.mean) - margin) / self.standard_error))


def compare(
    values: Mapping[str, Values],
    planned: Sequence[Names],
    *,
    is_lower_better: bool,
    is_primary: bool = True,
    tested_first: Collection[Names] = (),
    controls: Collection[str] = (),
    noise_floor: float | None = None,
) -> dict[Names, Comparison]:
    """Each planned (reference, arm). values: arm -> seed -> metric; values that are not finite are left out.

    planned: all comparisons there will be, so that no verdict becomes easier while arms are missing. is_primary: False
    gives intervals and no p values or verdicts. tested_first: comparisons of which all must be significant before the
    others are tested; one without a p value is not. Empty: all are tested together. controls: arms known to behave
    unlike the others, such as one that cannot learn; their comparisons neither borrow nor lend variance. noise_floor:
    no smaller effect is called better or worse; None: there is no floor.
    """
    pairs = {names: paired(values.get(names[1], {}), values.get(names[0], {})) for names in planned}
    estimates = {names: difference(of_seeds) for names, of_seeds in pairs.items()}
    tested = {
        names: estimate for names, estimate in estimates.items() if estimate and _has_variance(estimate, pairs[names])
    }
    first = [names for names in planned if names in tested_first]
    others = [names for names in planned if names not in tested_first]
    moderated = {
        names: of_names
        for family in (first, others)
        for names, of_names in _moderated({n: tested[n] for n in family if n in tested}, controls).items()
    }
    p = (
        {names: 2 * float(stdtr(dof, -abs(tested[names].mean) / error)) for names, (error, dof) in moderated.items()}
        if is_primary
        else {}
    )
    corrected, are_others_tested = _corrected(p, first, others)
    comparisons = {}
    for names in planned:
        error, dof = moderated.get(names, (None, None))
        shown = _with_interval(estimates[names], error, dof)
        finding = _finding(shown, names in tested, corrected.get(names), is_lower_better, is_primary)
        if finding in (Finding.BETTER, Finding.WORSE) and shown and abs(shown.mean) < (noise_floor or 0.0):
            finding = Finding.BELOW_NOISE
        if finding is Finding.NOT_SEPARABLE and names in others and not are_others_tested:
            finding = Finding.NOT_TESTED
        both = p.get(names), corrected.get(names)
        together = len(first if names in tested_first else others)
        comparisons[names] = Comparison(tuple(pairs[names]), shown, error, dof, *both, finding, together)
    return comparisons


def _corrected(
    p: Mapping[Names, float], first: Sequence[Names], others: Sequence[Names]
) -> tuple[dict[Names, float], bool]:
    """Corrected p values, and whether the second family is tested: the largest of the first is at most LEVEL.

    Holm's within each family, and for the second no less than the largest of the first, where a comparison without a p
    value counts as 1.
    """
    of_first = holm({names: p[names] for names in first if names in p}, len(first))
    gate = max((of_first.get(names, 1.0) for names in first), default=0.0)
    of_others = holm({names: p[names] for names in others if names in p}, len(others))
    return of_first | {names: max(value, gate) for names, value in of_others.items()}, gate <= LEVEL


def paired(values: Values, reference: Values) -> Pairs:
    """(value, reference value) of every seed that has both, finite."""
    common = sorted(values.keys() & reference.keys(), key=lambda seed: (seed is None, seed))
    return {s: (values[s], reference[s]) for s in common if isfinite(values[s]) and isfinite(reference[s])}


def difference(pairs: Pairs) -> Estimate | None:
    """The mean of value − reference over seeds; None without pairs."""
    return estimate([value - reference for value, reference in pairs.values()]) if pairs else None


def _has_variance(estimate: Estimate, pairs: Pairs) -> bool:
    if estimate.sd is None:
        return False
    return estimate.sd > _RELATIVE_NOISE * max(abs(number) for pair in pairs.values() for number in pair)


def _moderated(tested: Mapping[Names, Estimate], controls: Collection[str]) -> dict[Names, tuple[float, float]]:
    """(standard error, degrees of freedom) of every mean difference."""
    estimates = list(tested.values())
    if not estimates:
        return {}
    variances = np.array([estimate.sd**2 if estimate.sd is not None else nan for estimate in estimates])
    numbers = np.array([estimate.n for estimate in estimates], float)
    dof = numbers - 1
    is_ordinary = np.array([not set(names) & set(controls) for names in tested])
    variances[is_ordinary], dof[is_ordinary] = moderate(variances[is_ordinary], dof[is_ordinary])
    errors = np.sqrt(variances / numbers)
    return {names: (float(e), float(d)) for names, e, d in zip(tested, errors, dof, strict=True)}


def _with_interval(estimate: Estimate | None, error: float | None, dof: float | None) -> Estimate | None:
    if estimate is None or error is None or dof is None:
        return estimate
    half = float(stdtrit(dof, 1 - LEVEL / 2)) * error
    return Estimate(estimate.n, estimate.mean, estimate.sd, estimate.mean - half, estimate.mean + half)


def _finding(
    estimate: Estimate | None, is_tested: bool, p_holm: float | None, is_lower_better: bool, is_primary: bool
) -> Finding:
    if estimate is None or estimate.sd is None:
        return Finding.UNPAIRED
    if not is_tested:
        return Finding.CONSTANT
    if not is_primary:
        return Finding.DESCRIPTIVE
    if p_holm is None or p_holm > LEVEL:
        return Finding.NOT_SEPARABLE
    return Finding.BETTER if (estimate.mean < 0) == is_lower_better else Finding.WORSE
