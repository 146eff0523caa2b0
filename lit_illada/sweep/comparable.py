"""Rejects sweeps that would rank arms by a metric on different validation tokens or problems."""

from collections.abc import Mapping
from typing import Any

from lit_illada.errors import UserError
from lit_illada.sweep.spec import Command, SweepSpec

Tree = dict[str, Any]

# settings that determine which tokens validation scores and what context they have, by the command of a stage
_ROWS = {
    Command.PRETRAIN: [
        "trainer.val_rows",
        "trainer.val_draws",
        "data.row_length",
        "data.isolate_documents",
        "data.source",
        "data.validation_fraction",
        "data.shard_tokens",
    ],
    Command.SFT: [
        "trainer.val_rows",
        "trainer.val_draws",
        "sft_data.row_length",
        "sft_data.source",
        "sft_data.template",
        "sft_data.validation_fraction",
    ],
}
# settings of the validation metrics of a command; those per token also need the same tokenizer
_KEYS = {
    Command.PRETRAIN: [*_ROWS[Command.PRETRAIN], "data.tokenizer"],
    Command.SFT: _ROWS[Command.SFT],
    Command.ALIGN: ["trainer.val_rows", "task", "problems", "preferences"],
}
# by the beginning of their names, metrics of which other settings decide
_OTHER_KEYS = {
    "val/bits_per_byte": _ROWS,
    "val/exact_match": {
        Command.SFT: [
            "sft_data.source",
            "sft_data.template",
            "sft_data.validation_fraction",
            "evaluation.num_examples",
        ]
    },
}


def check_comparable(spec: SweepSpec, configs: Mapping[str, Mapping[str, Tree]]) -> None:
    """Raise UserError with the differing settings if a metric of the sweep cannot compare the arms.

    configs: resolved configs by arm and stage.
    """
    for metric in spec.metrics:
        keys = _keys(metric.name, spec.stage(metric.stage).command)
        seen = {arm: {key: _value(stages[metric.stage], key) for key in keys} for arm, stages in configs.items()}
        first, *others = seen
        for arm in others:
            different = [key for key in keys if seen[arm][key] != seen[first][key]]
            if different:
                listed = "; ".join(f"{key}: {_shown(seen[first][key])}, {_shown(seen[arm][key])}" for key in different)
                what = "tokens" if "trainer.val_draws" in keys else "problems"
                raise UserError(
                    f"metrics: {metric.name} of stage {metric.stage!r} cannot rank arms {first!r} and {arm!r}, which "
                    f"validate on different {what} ({listed}): give them the same values, or rank by a metric of a "
                    "score stage"
                )


def _keys(metric: str, command: Command) -> list[str]:
    """Settings that must be equal for all arms; none for a metric that is not of a validation."""
    if not metric.startswith("val/"):
        return []
    others = next((keys for beginning, keys in _OTHER_KEYS.items() if metric.startswith(beginning)), _KEYS)
    return others.get(command, [])


def _value(tree: Tree, key: str) -> Any:
    """Value of a dotted key; a prepared source also needs its folder, which identifies the data."""
    node, _, name = key.rpartition(".")
    value = tree[node][name] if node else tree[name]
    if key == "data.source" and value["name"] == "prepared":
        return {**value, "dir": tree["data"]["dir"]}
    return value


def _shown(value: Any) -> str:
    return value["name"] if isinstance(value, dict) and "name" in value else str(value)
