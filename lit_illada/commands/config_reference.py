"""The text of conf/README.md: every group with its files, and every key with type, default and meaning.

`python -m lit_illada.commands.config_reference` (`make reference`) writes it; a test compares it with the source.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from lit_illada.commands.explain import allowed_values, shown
from lit_illada.config import SCHEMAS
from lit_illada.runtime.field_docs import member_docs, summary
from lit_illada.runtime.paths import conf_dir
from lit_illada.schema import choice_name, to_tree, type_name

_HEAD = """# Configuration

Written by `make reference` from the field docs of the dataclasses; do not edit it.

Every command composes its config from the YAML files here, in Hydra's way: `GROUP=FILE` chooses a file of a group,
`KEY=VALUE` sets a value. The dataclasses hold the defaults, and a file lists only what differs from them. `lit-illada
config` prints the whole config, `lit-illada config --explain KEY` one key; a key of a choice that is not the default is
explained with the command and the choice.

```bash
lit-illada config pretrain experiment=demo
lit-illada config --explain trainer.batch_rows
lit-illada config pretrain --explain optim.schedule.patience optim/schedule=reactive
```
"""


def reference() -> str:
    """Return the text of conf/README.md."""
    parts = [_HEAD]
    for folder in sorted(path for path in conf_dir().rglob("*") if path.is_dir()):
        if files := sorted(folder.glob("*.yaml")):
            parts += [f"## `{folder.relative_to(conf_dir())}`\n", *map(_file_line, files), ""]
    parts += ["# Keys\n"]
    seen: set[type] = set()
    for command, schema in SCHEMAS.items():
        parts += _tables(schema, f"`lit-illada {command}`", seen)
    return "\n".join(parts).rstrip() + "\n"


def _file_line(path: Path) -> str:
    """Return the list item of a YAML file: its name and the comments at its head."""
    comments = re.match(r"(?:#[^\n]*\n)*", path.read_text(encoding="utf-8"))[0]  # type: ignore[index]
    text = " ".join(line.lstrip("# ").strip() for line in comments.splitlines() if "@package" not in line)
    return f"- `{path.stem}`" + (f": {text}" if text else "")


def _tables(schema: type, title: str, seen: set[type]) -> Iterator[str]:
    """Yield the table of a dataclass, then those of the dataclasses in its fields that are not in `seen`."""
    if schema in seen:
        return
    seen.add(schema)
    hints, docs = get_type_hints(schema), member_docs(schema)
    fields = dataclasses.fields(schema)
    if fields:
        yield f"## {title}\n"
        if text := summary(schema):
            yield f"{text}\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        for field in fields:
            cells = (f"`{field.name}`", _type(field, hints), _default(field), _meaning(field, hints, docs))
            yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
        yield ""
    for field in fields:
        if table := field.metadata.get("choices"):
            for name, cls in table.items():
                yield from _tables(cls, f"`{field.name}.name={name}`", seen)
        for cls in (hints[field.name], *get_args(hints[field.name])):
            if isinstance(cls, type) and dataclasses.is_dataclass(cls):
                yield from _tables(cls, f"`{field.name}`", seen)


def _type(field: dataclasses.Field[Any], hints: dict[str, Any]) -> str:
    if table := field.metadata.get("choices"):
        return "one of " + ", ".join(f"`{name}`" for name in table)
    if values := _enumerated(hints[field.name]):
        return "one of " + ", ".join(f"`{name}`" for name in values)
    hint = hints[field.name]
    return "a group of keys" if dataclasses.is_dataclass(hint) else type_name(hint)


def _meaning(field: dataclasses.Field[Any], hints: dict[str, Any], docs: dict[str, str]) -> str:
    """The doc of a field; of an enumeration with the docs of its values."""
    values, doc = _enumerated(hints[field.name]), docs.get(field.name, "")
    lines = [f"`{name}`: {text.removesuffix('.')}" for name, text in values.items() if text]
    return f"{doc.removesuffix('.')}. {'; '.join(lines)}." if lines else doc


def _enumerated(hint: Any) -> dict[str, str]:
    """Meaning by value of an enumeration; empty for other types."""
    values = allowed_values(hint)
    return {} if "true" in values else values


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{shown(to_tree(field.default))}`"
    if field.default_factory is dataclasses.MISSING:
        return "required"
    value = field.default_factory()
    if table := field.metadata.get("choices"):
        return f"`{choice_name(table, value)}`"
    return "" if dataclasses.is_dataclass(value) else f"`{shown(to_tree(value))}`"


if __name__ == "__main__":
    (conf_dir() / "README.md").write_text(reference(), encoding="utf-8")
