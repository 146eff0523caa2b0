"""Shell completion: commands and options by click, config groups from the YAML files, keys from the dataclasses."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from lit_illada.errors import UserError
from lit_illada.runtime.key_hints import similar_key
from lit_illada.runtime.paths import conf_dir
from lit_illada.runtime.yaml_files import read_yaml


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
    overrides, config = _overrides(ctx), _config_of(ctx)
    groups = _groups(conf_dir() / f"{config}.yaml", "", "", dict(word.split("=", 1) for word in overrides))
    candidates = [f"{name}=" for name in [*sorted(groups), *sorted(_keys(config, overrides))]]
    return [CompletionItem(text) for text in candidates if text.startswith(incomplete)]


def _values(ctx: click.Context, key: str) -> list[str]:
    """Values of a key: names of a choice, members of an enumeration, or booleans."""
    from lit_illada.commands.explain import values_of

    return values_of(key, _config_of(ctx), _overrides(ctx))


def _overrides(ctx: click.Context) -> list[str]:
    """The complete overrides before the word."""
    return [word for word in ctx.params.get("overrides") or () if "=" in word]


def key_hint(ctx: click.Context, option: str) -> str:
    """Hint for an unknown option of a command whose config values are written KEY=VALUE."""
    key = option.lstrip("-").replace("-", "_")
    config = "pretrain" if ctx.info_name in ("config", "estimate") else _config_of(ctx)
    if not (conf_dir() / f"{config}.yaml").is_file():  # a sweep, whose keys depend on its file
        return f" Values are written KEY=VALUE, such as {'+scale=nano' if key == 'scale' else f'{key}=…'}"
    keys = _keys(config, ())
    near = key if key in keys else similar_key(key, keys)
    return f" Config values are written KEY=VALUE: {near}=…" if near else " Config values are written KEY=VALUE."


def _config_of(ctx: click.Context) -> str:
    """Name of the top-level file in conf/ that the command composes."""
    if ctx.info_name in ("config", "estimate"):
        return str(ctx.params["command"])
    return "data" if ctx.info_name == "prepare" else str(ctx.info_name)


def _files(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _groups(file: Path, group: str, package: str, chosen: Mapping[str, str]) -> set[str]:
    """Return the groups in the defaults lists of a file and of the files that it chooses.

    group: folder of the file inside conf/. package: where its keys lie. chosen: group to file, before the defaults.
    """
    groups: set[str] = set()
    if not file.is_file():
        return groups
    tree = read_yaml(file, may_be_empty=True)
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
            groups |= _groups(inner_file, inner_group, inner_package, chosen)
    return groups


def _keys(config: str, overrides: Sequence[str]) -> list[str]:
    """Keys of a command's config except the names of choices; empty if the overrides are invalid."""
    from lit_illada.config import compose_tree
    from lit_illada.run_folder import flatten

    try:
        keys = flatten(compose_tree(config, overrides))
    except UserError:
        return []
    # the model of a fine-tuning run is that of its checkpoint
    return sorted(
        key
        for key in keys
        if not key.endswith(".name") and not (config in ("sft", "align") and key.startswith("model."))
    )
