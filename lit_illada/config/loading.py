"""Loads configs: composed from the files of conf/, or saved with a run."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lit_illada.config.align import AlignConfig
from lit_illada.config.runs import PretrainConfig, SFTConfig
from lit_illada.config.use import ExamplesConfig, GenerateConfig, PrepareConfig, ScoreConfig
from lit_illada.config_files import chooses_file, compose_files, is_group
from lit_illada.errors import UserError, unknown
from lit_illada.loops.config import LoopsConfig
from lit_illada.overrides import apply_overrides, keys_of, parse_assignment, require_assignment
from lit_illada.runtime import plugins
from lit_illada.runtime.key_hints import UnknownKeyError, nearest_key
from lit_illada.runtime.paths import conf_dir
from lit_illada.runtime.yaml_files import read_yaml
from lit_illada.schema import check_fields, from_tree, settings_of_other_choices, with_defaults
from lit_illada.training.config.trainer import TrainerConfig

_SECTIONS = {"model", "optim", "trainer"}  # sections of every config saved by any version

SCHEMAS: dict[str, type] = {
    "sft": SFTConfig,
    "pretrain": PretrainConfig,
    "align": AlignConfig,
    "generate": GenerateConfig,
    "score": ScoreConfig,
    "data": PrepareConfig,
    "examples": ExamplesConfig,
    "loops": LoopsConfig,
}


def load(command: str, overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None) -> Any:
    """Compose the config of a command (a file at the top of conf/) with Hydra overrides, and validate it.

    given: top-level values that come from no file, such as the model of a checkpoint.
    Raises UserError for an unknown key or choice (naming the nearest), a wrong type or an impossible combination.
    """
    if command not in SCHEMAS:
        raise unknown("command", command, SCHEMAS)
    tree = {**compose_tree(command, overrides), **(given or {})}
    try:
        return from_tree(SCHEMAS[command], tree)
    except UnknownKeyError as error:
        raise _nearest_key(command, tree, error) from error


def compose_tree(command: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose the config of a command as an unchecked tree.

    Precedence, lowest first: defaults of the dataclasses, files of conf/, overrides of values.
    """
    choices = [override for override in overrides if chooses_file(override)]
    values = [override for override in overrides if override not in choices]
    return apply_overrides(_completed(command, choices), values, resolve=True)


def _completed(command: str, choices: Sequence[str] = ()) -> DictConfig:
    """Return the composed files with the defaults of the dataclasses."""
    tree = compose_files(command, choices)
    if any(_group(choice) == "alignment" for choice in choices):
        choices = [choice for choice in choices if _group(choice) != "experiment"]
        _drop_method_of_experiment(command, tree, choices)
    for override in choices:
        _replace_part_of_method(command, tree, override, choices)
        _drop_settings_of_another_choice(command, tree, override)
    plugins.allow(tree)
    return OmegaConf.create(with_defaults(SCHEMAS[command], tree))


def _group(override: str) -> str:
    return override.partition("=")[0].lstrip("+").strip()


def _drop_method_of_experiment(command: str, tree: dict[str, Any], choices: Sequence[str]) -> None:
    """Replace the settings that an experiment makes for its own method where a file of alignment/ is chosen.

    experiment=align/demo sets alignment.estimator.num_segments, which alignment=espo does not have, and turns off the
    regulariser, which is part of alignment=d1. Of the section only the reward remains, which belongs to the problems.
    choices: those besides the experiment.
    """
    reward = {name: value for name, value in tree["alignment"].items() if name == "reward"}
    tree["alignment"] = compose_files(command, choices)["alignment"] | reward


def _replace_part_of_method(command: str, tree: dict[str, Any], override: str, choices: Sequence[str]) -> None:
    """Replace the settings that a file of alignment/ makes for one estimator, form, … where another one is chosen.

    alignment=espo sets alignment.estimator.num_pairs, which alignment/estimator=elbo does not have.
    """
    group, _, name = override.partition("=")
    method, _, axis = group.partition("/")
    if method != "alignment" or not axis:
        return
    others = [each for each in choices if each != override]
    if compose_files(command, others)[method][axis]["name"] != tree[method][axis]["name"]:
        tree[method][axis] = read_yaml(conf_dir() / group / f"{name.strip()}.yaml")
        if axis == "regulariser":  # the period is that of the other one's reference
            tree[method].pop("reference_every", None)


def _drop_settings_of_another_choice(command: str, tree: dict[str, Any], override: str) -> None:
    """Drop the settings that other files make for one class where a file of another one is chosen.

    optim=muon_small sets optim.schedule.decay_fraction, which optim/schedule=cosine does not have. Settings that both
    have remain, such as the warm-up.
    """
    group, _, name = override.partition("=")
    *parents, last = group.split("/")
    node: Any = tree
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not parents or not isinstance(node, dict) or not isinstance(node.get(last), dict):
        return
    of_others = settings_of_other_choices(SCHEMAS[command], tree, [*parents, last])
    if of_others & node[last].keys():
        own = read_yaml(conf_dir() / group / f"{name.strip()}.yaml", may_be_empty=True)
        node[last] = {key: value for key, value in node[last].items() if key in own or key not in of_others}


def check_overrides(command: str, overrides: Sequence[str] = (), *, is_whole: bool = True) -> dict[str, Any]:
    """Return the composed tree. Raises UserError where `load` would, without slow imports.

    is_whole: False if the model comes from a checkpoint, which is not read here; fields are then checked separately.
    """
    tree = compose_tree(command, overrides)
    try:
        if is_whole:
            from_tree(SCHEMAS[command], tree)
        else:
            check_fields(SCHEMAS[command], tree)
            if command == "sft":
                from_tree(TrainerConfig, tree["trainer"], "trainer.").check_batch()
    except UnknownKeyError as error:  # a key added with +: the nearest may be in another group
        raise _nearest_key(command, tree, error) from error
    return tree


def _nearest_key(command: str, tree: Mapping[str, Any], error: UnknownKeyError) -> UserError:
    """Return the error for an unknown key of a composed tree; the allowed ones include the fields of users' classes."""
    if "[" in error.key:  # of an element of a list: the error names its keys
        return error
    full = OmegaConf.create(with_defaults(SCHEMAS[command], tree))
    return nearest_key(error.key, [known for known in keys_of(full) if known != error.key])


def load_file(command: str, path: Path, overrides: Sequence[str] = ()) -> Any:
    """Load the config saved with a run, with overrides of values.

    Raises UserError for an incomplete or invalid config, and for an override that chooses a file of a group.
    """
    for override in overrides:
        assignment = parse_assignment(override)
        plugins.allow_assignment(assignment.key, assignment.value)
    saved = read_yaml(path)
    sections = [item.name for item in fields(SCHEMAS[command]) if item.name in _SECTIONS]
    if missing := [name for name in sections if name not in saved]:
        raise UserError(f"{path}: lacks {', '.join(missing)}: it is not the complete config of a run")
    tree = OmegaConf.create(with_defaults(SCHEMAS[command], saved))
    try:
        from_tree(SCHEMAS[command], OmegaConf.to_container(tree))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for override in overrides:
        key = require_assignment(override)
        if is_group(key):
            raise UserError(
                f"{override!r} would choose a file of the group {key}: on a saved config only values can be set, such "
                "as trainer.max_steps=500"
            )
    return from_tree(SCHEMAS[command], apply_overrides(tree, overrides))
