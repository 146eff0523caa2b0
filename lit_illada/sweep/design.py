"""Describes the statistical design of a sweep: tests, primary metric, correction and power."""

from lit_illada.stats.power import power, visible_effect
from lit_illada.sweep.spec import SweepSpec

TEST = "two-sided paired t test over seeds with moderated variance"
_EFFECTS = (1, 2, 3)  # standard deviations of the paired differences


def describe(spec: SweepSpec) -> dict[str, str]:
    """Texts by heading, for `sweep plan`, the terminal output of the report and its page."""
    primary = spec.metrics[0]
    secondary = [metric.name for metric in spec.metrics[1:]]
    shown = f"; {', '.join(secondary)}: intervals only, no verdicts" if secondary else ""
    lines = {"primary": f"{primary.name} after {primary.stage}, {primary.goal} is better, carries the verdicts{shown}"}
    if spec.primary_contrast is not None:
        lines["contrast"] = f"{spec.primary_contrast} against {spec.baseline} is the primary contrast"
    number = len(spec.tested_pairs())
    if number:
        correction = f"corrected for {number} comparisons (Holm)" if number > 1 else "one comparison"
        lines["test"] = f"{TEST}, {correction}; at most 5 % of sweeps without a difference give a verdict"
        lines["power"] = power_text(len(spec.seeds), number)
    if spec.equal_in_expectation:
        margin = spec.equivalence_margin
        lines["equivalence"] = (
            "pairs with one expected objective are not tested for equivalence: equivalence_margin is not set"
            if margin is None
            else f"two one-sided t tests (TOST) at 5 %, margin ±{margin:g} in units of {primary.name}"
        )
    return lines


def power_text(num_seeds: int, num_comparisons: int) -> str:
    """Expected power for differences in units of the standard deviation (sd) of the paired differences."""
    if num_seeds < 2:
        return "no verdict is possible with one seed: a paired test needs two or more"
    chances = [f"{100 * power(effect, num_seeds, num_comparisons):.0f}" for effect in _EFFECTS]
    effects = [str(effect) for effect in _EFFECTS]
    return (
        f"{num_seeds} seeds find a true difference of {_listed(effects)} sd of the paired differences with "
        f"{_listed(chances)} % chance, and one of {visible_effect(num_seeds, num_comparisons):.1f} sd with 80 %"
    )


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
