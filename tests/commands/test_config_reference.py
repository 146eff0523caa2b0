"""conf/README.md matches the field docs, and every config field has one."""

import dataclasses
import re
from typing import get_args, get_type_hints

from lit_illada.commands.config_reference import reference
from lit_illada.config import SCHEMAS
from lit_illada.runtime.field_docs import member_docs
from lit_illada.runtime.paths import conf_dir


def config_classes():
    """Every dataclass that a config can hold."""
    seen, waiting = set(), list(SCHEMAS.values())
    while waiting:
        cls = waiting.pop()
        if cls in seen or not dataclasses.is_dataclass(cls):
            continue
        seen.add(cls)
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            waiting += (field.metadata.get("choices") or {}).values()
            waiting += [each for each in (hints[field.name], *get_args(hints[field.name])) if isinstance(each, type)]
    return seen


def test_committed_reference_is_up_to_date():
    assert (conf_dir() / "README.md").read_text(encoding="utf-8") == reference(), "run `make reference`"


def test_headings_are_keys_and_types_are_words():
    text = reference()
    headings = re.findall(r"(?m)^## `(.+)`$", text.partition("# Keys")[2])
    assert len(headings) == len(set(headings))
    assert {"trainer.parallel", "loops.near_exact", "alignment.reward.terms[]", "generation.cache.name=prefix"} <= {
        *headings
    }
    assert "Also `samples.generation`, `evaluation.generation`." in text
    assert "Also `samples.generation.cache" not in text
    rows = [re.split(r" (?<!\\)\| ", line) for line in text.splitlines() if line.startswith("| `")]
    types, meanings = [row[1] for row in rows], [row[3] for row in rows]
    assert {"a group of keys or null", "a list of groups of keys", "a mapping"} <= {*types}
    assert not [each for each in types if re.search(r"<|typing|\[", each)]
    assert not [each for each in meanings if re.search(r"\bNone\b", each)]


def test_every_config_field_is_documented():
    missing = [
        f"{cls.__qualname__}.{field.name}"
        for cls in config_classes()
        for field in dataclasses.fields(cls)
        if not member_docs(cls).get(field.name)
    ]
    assert not missing, sorted(missing)
