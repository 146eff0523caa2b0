"""Checks that a run resumed within a rollout has the settings by which the stored rollout was made. No torch."""

from typing import Any

from lit_illada.errors import UserError
from lit_illada.run_folder import flatten

# Settings of alignment, or prefixes of them, that determine the completions, advantages and masks, or which policies
# are scored. Others, such as the bounds of a clip, apply to stored scores as to new ones.
_STORED = (
    "reward.terms",
    "advantage.",
    "estimator.",
    "form.name",
    "regulariser.name",
    "only_mixed_groups",
    "fresh_noise",
    "share_noise",
    "masked_prompt",
    "score_after_eos",
    "temperature_in_score",
)


def check_stored_rollout(saved: dict[str, Any], new: dict[str, Any], step: int) -> None:
    """Raise UserError where the rollout in a checkpoint was made with other settings.

    saved, new: config of the run in the checkpoint and now, as trees. step: optimizer steps of the checkpoint.
    """
    before, now = _settings_of_rollout(saved), _settings_of_rollout(new)
    # settings of one side only belong to another choice, whose name differs too, or to another version
    changed = [key for key in before if key in now and before[key] != now[key]]
    if changed:
        listed = ", ".join(f"{key} was {before[key]} and would be {now[key]}" for key in changed)
        raise UserError(
            f"the checkpoint of step {step} lies within a rollout, of which it holds completions, advantages and "
            f"scores, but {listed}: resume without this change, or start a new run with init_from"
        )


def _settings_of_rollout(config: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted key."""
    flat = flatten(config["alignment"])
    settings = {f"alignment.{key}": value for key, value in flat.items() if key.startswith(_STORED)}
    if config["alignment"].get("temperature_in_score"):
        settings["generation.temperature"] = config["generation"]["temperature"]
    return settings
