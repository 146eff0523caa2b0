"""Shell completion: commands and options by click, config groups and keys from the YAML files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from lit_illada.runtime.files import read_text
from lit_illada.runtime.key_hints import similar_key
from lit_illada.runtime.paths import conf_dir
from lit_illada.runtime.yaml_files import parse_yaml


def script(command: click.Command, shell: str) -> str:
    """Completion script of a shell."""
    cls = get_completion_class(shell)
    assert cls is not None
    return cls(command, {}, "lit-illada", "_LIT_ILLADA_COMPLETE").source()


def complete_override(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completions of a word: groups (`model=`), files (`model=nano`), keys (`model.hidden_size=`) and values."""
    key, has_value, typed = incomplete.partition("=")
    folder = conf_dir() / key.partition("@")[0]
    if has_value and folder.is_dir():
        return [CompletionItem(f"{key}={name}") for name in _files(folder) if name.startswith(typed)]
    if has_value:
        return [CompletionItem(f"{key}={value}") for value in _values(ctx, key) if value.startswith(typed)]
    chosen = dict(word.split("=", 1) for word in ctx.params.get("overrides") or () if "=" in word)
    groups, keys = _compose(conf_dir() / f"{_config_of(ctx)}.yaml", "", "", chosen)
    candidates = [f"{name}=" for name in [*sorted(groups), *sorted(keys)]]
    return [CompletionItem(text) for text in candidates if text.startswith(incomplete)]


def _values(ctx: click.Context, key: str) -> list[str]:
    """Values of a key: names of a choice, members of an enumeration, or booleans."""
    from lit_illada.commands.explain import values_of

    overrides = [word for word in ctx.params.get("overrides") or () if "=" in word]
    return values_of(key, _config_of(ctx), overrides)


def key_hint(ctx: click.Context, option: str) -> str:
    """Hint for an unknown option of a command whose config values are written KEY=VALUE."""
    key = option.lstrip("-").replace("-", "_")
    config = "pretrain" if ctx.info_name in ("config", "estimate") else _config_of(ctx)
    _, keys = _compose(conf_dir() / f"{config}.yaml", "", "", {})
    near = key if key in keys else similar_key(key, sorted(keys))
    return f" Config values are written KEY=VALUE: {near}=…" if near else " Config values are written KEY=VALUE."


def _config_of(ctx: click.Context) -> str:
    """Name of the top-level file in conf/ that the command composes."""
    if ctx.info_name in ("config", "estimate"):
        return str(ctx.params["command"])
    return "data" if ctx.info_name == "prepare" else str(ctx.info_name)


def _files(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _compose(file: Path, group: str, package: str, chosen: Mapping[str, str]) -> tuple[set[str], set[str]]:
    """Groups and keys of a config file and of the files in its defaults, without importing Hydra, which is slow.

    group: folder of the file in conf/. package: dotted prefix of its keys. chosen: file by group, overriding defaults.
    """
    groups: set[str] = set()
    if not file.is_file():
        return groups, set()
    tree = parse_yaml(read_text(file), str(file), object) or {}
    keys = set(_leaves({key: value for key, value in tree.items() if key != "defaults"}, package))
    if package:
        keys.discard(f"{package}.name")  # the name of a choice is selected by its group
    for entry in tree.get("defaults", ()):
        if entry == "_self_":
            continue
        ((name, choice),) = entry.items()
        name, _, inner = name.partition("@")
        inner_group = f"{group}/{name}".lstrip("/")
        inner_package = f"{package}.{inner or name.replace('/', '.')}".lstrip(".")
        is_elsewhere = inner_package != inner_group.replace("/", ".")
        key = f"{inner_group}@{inner_package}" if is_elsewhere else inner_group
        groups.add(key)
        if inner_group != "experiment":  # experiments only override keys of other groups
            inner_file = conf_dir() / inner_group / f"{chosen.get(key, choice)}.yaml"
            more_groups, more_keys = _compose(inner_file, inner_group, inner_package, chosen)
            groups, keys = groups | more_groups, keys | more_keys
    return groups, keys


def _leaves(node: Mapping[str, Any], where: str) -> Iterator[str]:
    for name, child in node.items():
        path = f"{where}.{name}".lstrip(".")
        if isinstance(child, dict) and child:
            yield from _leaves(child, path)
        else:
            yield path
