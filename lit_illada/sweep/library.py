"""The library of sweeps, and the resolution of a file, its scale and overrides to a spec."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from lit_illada.errors import UserError, unknown
from lit_illada.overrides import parse_assignment
from lit_illada.runtime.console import Console
from lit_illada.runtime.paths import sweeps_dir
from lit_illada.runtime.yaml_files import read_yaml
from lit_illada.schema import from_tree, to_tree
from lit_illada.sweep.spec import Command, CommonScale, Scale, SweepSpec
from lit_illada.sweep.spec_check import check

RESOLVED_FILE = "sweep.yaml"


def read_spec(name: str, overrides: Sequence[str] = ()) -> SweepSpec:
    """Spec of a sweep, resolved at the scale that `scale=` names.

    Args:
        name: a sweep of the library, a YAML file, or the folder of a started sweep.
        overrides: KEY=VALUE settings. Overrides of a stage need no quotes: `overrides.pretrain=[a=1,b=2]`.

    Raises:
        UserError: the sweep, the scale or a key does not exist, or the spec is invalid.
    """
    resolved_file = Path(name) / RESOLVED_FILE
    path = resolved_file if resolved_file.is_file() else spec_file(name)
    tree = read_yaml(path)
    settings = [_assignment(override) for override in overrides]
    for keys, value in settings:
        if keys == ["scale"]:
            if path == resolved_file:
                raise UserError(f"{path}: the scale of a started sweep cannot be changed, it is {tree['scale']}")
            tree["scale"] = value
    try:
        is_resolved = path == resolved_file
        spec = from_tree(SweepSpec, tree, is_strict=True) if is_resolved else _at_scale({"name": path.stem, **tree})
        tree = to_tree(spec)
        for keys, value in settings:
            if keys != ["scale"]:
                _set(tree, keys, value)
        spec = from_tree(SweepSpec, tree)
        check(spec)
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from error
    return spec


def refuse_early(name: str, overrides: Sequence[str]) -> None:
    """Raise UserError for an unknown sweep or key before the runs are planned, which imports torch."""
    if overrides or not (Path(name) / RESOLVED_FILE).is_file():
        read_spec(name, overrides)


def spec_file(name: str) -> Path:
    """YAML file of a sweep of the library, or the given file. Raises UserError if it does not exist."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        return path
    if name not in library():
        raise unknown("sweep", name, library())
    return sweeps_dir() / f"{name}.yaml"


def begin_path(begin_from: str) -> Path:
    """Path of the checkpoint that a sweep starts from: as given, or relative to sweeps/."""
    return Path(begin_from) if Path(begin_from).exists() else sweeps_dir() / begin_from


def library() -> list[str]:
    """Names of the sweeps that come with the package."""
    return sorted(path.stem for path in sweeps_dir().glob("*.yaml"))


def _scales() -> list[str]:
    """Names of the scales in sweeps/scale/."""
    return sorted(path.stem for path in (sweeps_dir() / "scale").glob("*.yaml"))


def print_library() -> None:
    """Print the name and question of every sweep of the library."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name in library():
        # arms are not validated, which would take a second
        table.add_row(name, str(read_yaml(spec_file(name)).get("question", "")))
    Console().print(table, highlight=False)


def _at_scale(tree: dict[str, Any]) -> SweepSpec:
    """Spec with its scale applied and `scales` emptied.

    Precedence, lowest first: sweeps/scale/NAME.yaml, the sweep's file, the file's own entry in `scales`.
    """
    spec = from_tree(SweepSpec, tree, is_strict=True)
    if spec.scale is None:
        return replace(spec, scales={})
    common_file = sweeps_dir() / "scale" / f"{spec.scale}.yaml"
    if not common_file.is_file() and spec.scale not in spec.scales:
        raise unknown("scale", spec.scale, {*spec.scales, *_scales()})
    own = spec.scales.get(spec.scale, Scale())
    stages = [stage.name for stage in spec.stages]
    for name in (*own.overrides, *own.arguments):
        if name not in stages:
            raise unknown(f"scales.{spec.scale}: stage", name, stages)
    shared: dict[str, list[str]] = {}
    if common_file.is_file():
        common = from_tree(CommonScale, read_yaml(common_file), is_strict=True)
        shared = common.overrides
        filled = {name: getattr(common, name) for name in ("seeds", "validations") if name not in tree}
        budget = common.budget if spec.budget is None and not spec.no_budget else spec.budget
        if "noise_floor" not in tree:
            filled["noise_floor"] = common.noise_floor
        if "tune" not in tree and spec.stages[0].command is Command.PRETRAIN:
            filled["tune"] = common.tune
        spec = replace(spec, budget=budget, **filled)
    named = (
        *("seeds", "budget", "validations", "baseline", "arms", "axes", "metrics", "equivalence_margin"),
        *("primary_contrasts", "noise_floor", "tune"),
    )
    given = {key: value for key in named if (value := getattr(own, key)) is not None}
    if own.keep_arms is not None:
        named_arms = {arm.name: arm for arm in spec.arms}
        for name in own.keep_arms:
            if name not in named_arms:
                raise unknown(f"scales.{spec.scale}.keep_arms: arm", name, named_arms)
        given["arms"] = [named_arms[name] for name in own.keep_arms]
        removed = set(named_arms) - set(own.keep_arms)
        for key in ("also_compare", "equal_in_expectation"):
            given[key] = [pair for pair in getattr(spec, key) if removed.isdisjoint(pair)]
    scaled = [
        replace(
            stage,
            overrides=[*shared.get(stage.command, []), *stage.overrides, *own.overrides.get(stage.name, [])],
            arguments=[*stage.arguments, *own.arguments.get(stage.name, [])],
        )
        for stage in spec.stages
    ]
    return replace(spec, stages=scaled, scales={}, **given)


def _assignment(override: str) -> tuple[list[str], Any]:
    """Parts of the dotted key, and the value. Raises UserError for a scale without `+scale=`."""
    if override in _scales():
        raise UserError(f"{override!r} is not an override: write +scale={override}")
    assignment = parse_assignment(_quote_nested(override))
    return assignment.key.split("."), assignment.value


def _quote_nested(override: str) -> str:
    """Override with quotes around the elements of a list of overrides, as in `overrides.pretrain=[model=1b]`.

    Hydra's grammar does not allow `=` in an unquoted element of a list.
    """
    key, _, value = override.partition("=")
    value = value.strip()
    if "overrides" not in key.lstrip("+").split(".") or not (value.startswith("[") and value.endswith("]")):
        return override
    quoted = [_quote(element) if _IS_ASSIGNMENT.match(element) else element for element in _elements(value[1:-1])]
    return f"{key}=[{','.join(quoted)}]"


_IS_ASSIGNMENT = re.compile(r"\s*[^\s'\"\[{(=]+=")


def _quote(element: str) -> str:
    escaped = element.strip().replace("'", "\\'")
    return f"'{escaped}'"


def _elements(text: str) -> list[str]:
    """Parts of a list, split at the commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for index, character in enumerate(text):
        if quote:
            if character == quote and text[index - 1] != "\\":
                quote = ""
        elif character in "'\"":
            quote = character
        elif character == "," and depth == 0:
            parts.append("")
            continue
        else:
            depth += (character in "[{(") - (character in "]})")
        parts[-1] += character
    return parts


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set a nested value. Raises UserError for a key within a list."""
    for key in keys[:-1]:
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
        if not isinstance(tree, dict):
            raise UserError(f"{'.'.join(keys)} cannot be overridden: {key} is a list; edit a copy of the file instead")
    tree[keys[-1]] = value
