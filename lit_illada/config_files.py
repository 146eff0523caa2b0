"""Composes the YAML files of conf/ with Hydra. The only module that imports Hydra's compose."""

import copy
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lit_illada.errors import UserError, unknown
from lit_illada.overrides import parse_assignment, require_assignment
from lit_illada.runtime.paths import conf_dir
from lit_illada.runtime.terminal import one_line
from lit_illada.runtime.yaml_files import read_yaml


def compose_files(command: str, choices: Sequence[str] = ()) -> dict[str, Any]:
    """Return the content of a command's file, of the files in its defaults and of those chosen by GROUP=FILE.

    Raises UserError, in one line, for a group or file that does not exist.
    """
    return _composed(_state_of_files(), command, tuple(choices))


def _state_of_files() -> frozenset[tuple[str, int]]:
    """Names and modification times of all files of conf/: a composition is valid while they stay the same."""
    return frozenset((str(path), path.stat().st_mtime_ns) for path in conf_dir().rglob("*.yaml"))


def _composed(files: frozenset[tuple[str, int]], command: str, choices: tuple[str, ...]) -> dict[str, Any]:
    """The composition of Hydra; choices of plain files, in which the arms of a sweep often differ, are exchanged."""
    others = tuple(each for each in choices if not _is_plain(files, each))
    tree = copy.deepcopy(_composed_by_hydra(files, command, others))
    exchanged = [each for each in choices if each not in others and _exchange(files, tree, each)]
    if len(exchanged) + len(others) < len(choices):
        others = tuple(each for each in choices if each not in exchanged)
        tree = copy.deepcopy(_composed_by_hydra(files, command, others))
        if not all(_exchange(files, tree, each) for each in exchanged):
            return copy.deepcopy(_composed_by_hydra(files, command, choices))
    return tree


def _is_plain(files: frozenset[tuple[str, int]], choice: str) -> bool:
    group, _, name = choice.partition("=")
    return _plain_file(files, group, name) is not None


def _exchange(files: frozenset[tuple[str, int]], tree: dict[str, Any], choice: str) -> bool:
    """Put the content of a plain file in place of that of another of its group.

    Returns False, without a change, unless the tree holds exactly the content of a plain file there: otherwise other
    files have set values of the group, or do not choose from it at all.
    """
    group, _, name = choice.partition("=")
    *parents, last = group.split("/")
    node: Any = tree
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        return False
    if all(_plain_file(files, group, other) != node[last] for other in _files(group)):
        return False
    node[last] = copy.deepcopy(_plain_file(files, group, name))
    return True


@cache
def _plain_file(files: frozenset[tuple[str, int]], group: str, name: str) -> dict[str, Any] | None:
    """Content of a file that composes no other, contains no interpolation and lies in the package of its group."""
    path = conf_dir() / group / f"{name}.yaml"
    if str(path) not in {known for known, _ in files}:
        return None
    text = path.read_text(encoding="utf-8")
    if "defaults:" in text or "@package" in text or "${" in text:
        return None
    return read_yaml(path, may_be_empty=True)


@cache  # a composition takes 0.2 s; a command needs its own twice, a sweep those of all arms
def _composed_by_hydra(files: frozenset[tuple[str, int]], command: str, choices: tuple[str, ...]) -> dict[str, Any]:
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="lit-illada"):
            loader: Any = GlobalHydra.instance().config_loader()
            loader.repository = _SharedRepository(loader.repository)
            loader.repository.cache = _parsed_files(files)
            tree = compose(command, list(choices))
        return OmegaConf.to_container(tree, resolve=True)  # type: ignore[return-value]
    except Exception as error:  # Hydra, OmegaConf and ANTLR raise errors of many classes for malformed overrides
        raise _as_user_error(error, choices) from error


@cache
def _parsed_files(files: frozenset[tuple[str, int]]) -> dict[str, Any]:
    """Files as Hydra has parsed them, by its name for them; compositions fill it."""
    return {}


class _SharedRepository(CachingConfigRepository):
    """Hydra's files, parsed once. Hydra copies its repository, and so its cache, for every composition."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_SharedRepository":
        return self


def chooses_file(override: str) -> bool:
    """Whether an override is GROUP=FILE. Raises UserError if Hydra would ignore it, or reject it without naming it."""
    key = require_assignment(override)
    if key.lstrip("+~").startswith("hydra"):
        raise UserError(f"{override!r}: Hydra only composes the config here; it has no settings")
    if not is_group(key):
        parse_assignment(override)
        return False
    if parse_assignment(override).value == []:
        raise UserError(f"{override!r} names no file of the group {key}: allowed are {', '.join(_files(key))}")
    return not override.partition("=")[2].lstrip().startswith("{")  # a mapping sets values


def is_group(key: str) -> bool:
    """Whether a key names a config group."""
    return os.path.isdir(_folder(key))  # Path.is_dir raises for a name that is too long


def _as_user_error(error: Exception, choices: Sequence[str]) -> UserError:
    """Convert an error of the composition to one line that names the override or the files to choose from."""
    if not isinstance(error, HydraException | OmegaConfBaseException):  # raised for a value that is no name
        for override in choices:
            group, _, value = override.partition("=")
            if value not in _files(group):
                return UserError(f"{override!r} names no file: allowed are {', '.join(_files(group))}")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return unknown(f"config {group or 'group'}", name, _files(group))
    message = str(error) or type(error).__name__
    return UserError(one_line(f"{' '.join(choices)}: {message}" if choices else message))


def _folder(group: str) -> Path:
    """Return the folder of a group written as in Hydra, such as `generation@samples.generation`."""
    return conf_dir() / group.lstrip("+").partition("@")[0]


def _files(group: str) -> list[str]:
    return sorted(path.stem for path in _folder(group).glob("*.yaml"))
