"""The text of conf/README.md: every group with its files, and every key with type, default and meaning.

`python -m lit_illada.commands.config_reference` (`make reference`) writes it; a test compares it with the source.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from lit_illada.commands.explain import allowed_values, shown, yaml_null
from lit_illada.config import SCHEMAS
from lit_illada.runtime.field_docs import member_docs, summary
from lit_illada.runtime.leaves import type_name
from lit_illada.runtime.paths import conf_dir
from lit_illada.schema import choice_name, to_tree

_HEAD = """# Configuration

Written by `make reference` from the field docs of the dataclasses; do not edit it.

Every command composes its config from the YAML files here, in Hydra's way: `GROUP=FILE` chooses a file of a group,
`KEY=VALUE` sets a value. The dataclasses hold the defaults, and a file lists only what differs from them. Where a file
of a nested group is chosen, values that other files set for another choice of it are dropped. `lit-illada config
COMMAND` prints the whole config of a command, `lit-illada config --explain KEY` explains one key. A key that only
another choice than the default has, such as `patience` below, needs the command and that choice as well.

```bash
lit-illada config pretrain experiment=demo
lit-illada config --explain trainer.batch_rows
lit-illada config pretrain --explain optim.schedule.patience optim/schedule=reactive
```
"""

_KEYS = """A heading is the key of a group (`[]`: of each element of a list) or, with `.name=`, one choice of a group.
Keys that occur in several places are shown once; "Also" names the other places.
"""


def reference() -> str:
    """Return the text of conf/README.md."""
    parts = [_HEAD]
    for folder in sorted(path for path in conf_dir().rglob("*") if path.is_dir()):
        if files := sorted(folder.glob("*.yaml")):
            parts += [f"## `{folder.relative_to(conf_dir())}`\n", *map(_file_line, files), ""]
    parts += ["# Keys\n", _KEYS]
    for schema, (title, *others) in _titles().items():
        parts += _table(schema, title, others)
    return "\n".join(parts).rstrip() + "\n"


def _file_line(path: Path) -> str:
    """Return the list item of a YAML file: its name and the comments at its head."""
    comments = re.match(r"(?:#[^\n]*\n)*", path.read_text(encoding="utf-8"))[0]  # type: ignore[index]
    text = " ".join(line.lstrip("# ").strip() for line in comments.splitlines() if "@package" not in line)
    return f"- `{path.stem}`" + (f": {text}" if text else "")


def _titles() -> dict[type, list[str]]:
    """Return the titles of each dataclass, the shortest first, without those that follow from another's titles."""
    titles: dict[type, dict[str, None]] = {}  # a dict per dataclass as an ordered set
    for command, config in SCHEMAS.items():
        for schema, title in _places(config, "", f"lit-illada {command}"):
            titles.setdefault(schema, {})[title] = None
    ordered = {schema: sorted(each, key=len) for schema, each in titles.items()}
    # where samples.generation is named beside generation, samples.generation.cache need not be
    prefixes = tuple(f"{title}." for _, *others in ordered.values() for title in others if ".name=" not in title)
    return {
        schema: [first, *(title for title in others if "[]" not in title and not title.startswith(prefixes))]
        for schema, (first, *others) in ordered.items()
    }


def _places(schema: type, path: str, title: str, above: tuple[type, ...] = ()) -> Iterator[tuple[type, str]]:
    """Yield a dataclass with its title, then those in its fields with their keys, each as often as a config has it.

    path: key of the dataclass; empty for a whole config. above: the dataclasses that contain it.
    """
    if schema in above:  # a mixture of tasks contains tasks
        return
    yield schema, title
    above, hints = (*above, schema), get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key, hint = f"{path}.{field.name}".lstrip("."), hints[field.name]
        table = field.metadata.get("choices") or {}
        for name, cls in table.items():
            yield from _places(cls, key, f"{key}.name={name}", above)
        if get_origin(hint) is list:
            key += "[]"
        for cls in (hint, *get_args(hint)):
            if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls not in table.values():
                yield from _places(cls, key, key, above)


def _table(schema: type, title: str, others: list[str]) -> Iterator[str]:
    """Yield the section of a dataclass with its title, its other titles, and the table of its fields."""
    if not (fields := dataclasses.fields(schema)):
        return
    hints, docs = get_type_hints(schema), member_docs(schema)
    yield f"## `{title}`\n"
    also = ", ".join(f"`{other}`" for other in others)
    if text := f"{yaml_null(summary(schema))}{f' Also {also}.' if also else ''}".strip():
        yield f"{text}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for field in fields:
        cells = (f"`{field.name}`", _type(field, hints), _default(field), _meaning(field, hints, docs))
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
    yield ""


def _type(field: dataclasses.Field[Any], hints: dict[str, Any]) -> str:
    if table := field.metadata.get("choices"):
        return "one of " + ", ".join(f"`{name}`" for name in table)
    if values := _enumerated(hints[field.name]):
        return "one of " + ", ".join(f"`{name}`" for name in values)
    return type_name(hints[field.name])


def _meaning(field: dataclasses.Field[Any], hints: dict[str, Any], docs: dict[str, str]) -> str:
    """The doc of a field; of an enumeration with the docs of its values."""
    values, doc = _enumerated(hints[field.name]), yaml_null(docs.get(field.name, ""))
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
