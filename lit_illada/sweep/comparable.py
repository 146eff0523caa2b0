"""Rejects sweeps that would rank arms by a metric on different validation tokens."""

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
# settings that determine the held-out problems of an alignment
_PROBLEMS = {Command.ALIGN: ["trainer.val_rows", "task", "problems", "preferences"]}
# metrics per token also need the same tokenizer; bits per byte do not
_TOKENS = {Command.PRETRAIN: ["data.tokenizer"], Command.SFT: []}
_KEYS = {
    "val/nll_bound": {command: [*keys, *_TOKENS[command]] for command, keys in _ROWS.items()},
    "val/bits_per_byte": _ROWS,
    **dict.fromkeys(("val/accuracy", "val/loop_rate", "val/endless_rate", "val/length"), _PROBLEMS),
}


def check_comparable(spec: SweepSpec, configs: Mapping[str, Mapping[str, Tree]]) -> None:
    """Raise UserError with the differing settings if a metric of the sweep cannot compare the arms.

    configs: resolved configs by arm and stage.
    """
    for metric in spec.metrics:
        keys = _KEYS.get(metric.name, {}).get(spec.stage(metric.stage).command, [])
        seen = {arm: {key: _value(stages[metric.stage], key) for key in keys} for arm, stages in configs.items()}
        first, *others = seen
        for arm in others:
            different = [key for key in keys if seen[arm][key] != seen[first][key]]
            if different:
                listed = "; ".join(f"{key}: {_shown(seen[first][key])}, {_shown(seen[arm][key])}" for key in different)
                what = "problems" if "task" in keys else "tokens"
                raise UserError(
                    f"metrics: {metric.name} of stage {metric.stage!r} cannot rank arms {first!r} and {arm!r}, which "
                    f"validate on different {what} ({listed}): give them the same values, or rank by a metric of a "
                    "score stage"
                )


def _value(tree: Tree, key: str) -> Any:
    """Value of a dotted key; a prepared source also needs its folder, which identifies the data."""
    node, _, name = key.rpartition(".")
    value = tree[node][name] if node else tree[name]
    if key == "data.source" and value["name"] == "prepared":
        return {**value, "dir": tree["data"]["dir"]}
    return value


def _shown(value: Any) -> str:
    return value["name"] if isinstance(value, dict) and "name" in value else str(value)
