"""What the shell completes: commands and options by click, config groups and keys from the YAML files."""

from collections.abc import Iterator
from pathlib import Path

import click
import yaml
from click.shell_completion import CompletionItem, get_completion_class

from lit_illada.share import conf_dir


def script(command: click.Command, shell: str) -> str:
    """The completion script of a shell."""
    cls = get_completion_class(shell)
    assert cls is not None
    return cls(command, {}, "lit-illada", "_LIT_ILLADA_COMPLETE").source()


def complete_override(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Groups (`model=`), their files (`model=nano`) and keys (`model.hidden_size=`) that continue what was typed."""
    group, has_value, typed = incomplete.partition("=")
    folder = conf_dir() / group
    if has_value and folder.is_dir():
        return [CompletionItem(f"{group}={name}") for name in _files(folder) if name.startswith(typed)]
    candidates = [f"{name}=" for name in [*_groups(), *sorted(set(_keys()))]]
    return [CompletionItem(text) for text in candidates if text.startswith(incomplete)]


def _groups() -> list[str]:
    root = conf_dir()
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir())


def _files(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _keys() -> Iterator[str]:
    root = conf_dir()
    for path in root.rglob("*.yaml"):
        package = ".".join(path.parent.relative_to(root).parts)
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        if package != "experiment" and isinstance(tree, dict):
            for key in tree:
                if key not in ("defaults", "name"):
                    yield f"{package}.{key}" if package else key
