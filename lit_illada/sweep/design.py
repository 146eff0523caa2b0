"""Describes the statistical design of a sweep: tests, primary metric, correction and power."""

from collections.abc import Mapping

from lit_illada.stats.intervals import LEVEL
from lit_illada.stats.power import power, visible_effect
from lit_illada.sweep.spec import SweepSpec
from lit_illada.sweep.variants import at_end

TEST = "two-sided paired t test over seeds with moderated variance"
_EFFECTS = (1, 2, 3)  # standard deviations of the paired differences


def describe(spec: SweepSpec, chosen: Mapping[str, float] | None = None) -> dict[str, str]:
    """Texts by heading, for `sweep plan`, the terminal output of the report and its page.

    chosen: value of the tuned key by arm; None: not chosen yet.
    """
    primary = spec.metrics[0]
    secondary = [metric.name for metric in spec.metrics[1:]]
    shown = f"; {', '.join(secondary)}: intervals only, no verdicts" if secondary else ""
    lines = {"primary": f"{primary.name} after {primary.stage}, {primary.goal} is better, carries the verdicts{shown}"}
    if spec.primary_contrasts:
        lines["contrast"] = f"{_listed(spec.primary_contrasts)} against {spec.baseline}: primary"
    if spec.tested_pairs():
        lines["test"] = f"{TEST}, {correction_text(spec)}; at most 5 % of sweeps without a difference give a verdict"
        power_of = power_text(len(spec.seeds), len(spec.primary_contrasts or spec.tested_pairs()))
        lines["power"] = power_of + (", for a primary contrast" if spec.primary_contrasts else "")
    if spec.equal_in_expectation:
        margin = spec.equivalence_margin
        lines["equivalence"] = (
            "pairs with one expected objective are not tested for equivalence: equivalence_margin is not set"
            if margin is None
            else f"two one-sided t tests (TOST) at 5 %, margin ±{margin:g} in units of {primary.name}"
        )
    if spec.noise_floor is not None:
        lines["noise floor"] = (
            f"{spec.noise_floor.replicates} rounding replicates of {spec.baseline}, which differ in the size of "
            "micro-batches only; no smaller effect gets a verdict"
        )
    if spec.tune is not None:
        lines["tuned"] = tuning_text(spec, chosen)
    return lines


def correction_text(spec: SweepSpec) -> str:
    """Which comparisons are corrected together, and in which order they are tested."""
    first = len(spec.primary_contrasts)
    others = len(spec.tested_pairs()) - first
    if not first or not others:
        number = first + others
        return f"corrected for {number} comparisons (Holm)" if number > 1 else "one comparison"
    contrasts = "the primary contrast" if first == 1 else f"the {first} primary contrasts (Holm)"
    rest = "the other comparison" if others == 1 else f"the {others} others (Holm)"
    return f"{contrasts} first, {rest} only if {'its' if first == 1 else 'every'} p is at most {LEVEL}"


def tuning_text(spec: SweepSpec, chosen: Mapping[str, float] | None) -> str:
    """The tuned key, its values and seeds, and the choice."""
    assert spec.tune is not None
    tune = spec.tune
    tried = f"{tune.key} of each arm, from {_listed([f'{value:g}' for value in tune.values])} at seeds "
    tried += ", ".join(map(str, tune.seeds))
    if chosen is None:
        return f"{tried}, which no other run uses; not chosen yet"
    words = f"{tried}: {'; '.join(f'{arm} {value:g}' for arm, value in chosen.items())}"
    ends = at_end(spec, chosen)
    return words + (
        f". At an end of the values, so that a better one may lie beyond: {', '.join(ends)}" if ends else ""
    )


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
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])
