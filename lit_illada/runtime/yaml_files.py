"""Reads YAML with limits on its size, its depth and the expansion of its aliases.

PyYAML has no such limits: a small file can expand to billions of nodes through aliases, or overflow the stack by
nesting. The limits are checked on the graph of nodes, before Python values are built. Booleans and numbers are those of
YAML 1.2's core schema: `1e-3` is a number and `010` is ten; `on`, `off`, `yes`, `no`, `1:30` and `1_000` are texts.
Timestamps stay texts too, and duplicate keys are errors.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from lit_illada.runtime.files import MAX_DEPTH, ContentError, read_text, require_kind

MAX_YAML_BYTES = 2**20  # which PyYAML parses in about 3 s
MAX_NODES = 100_000  # values, with aliases expanded


def read_yaml(path: Path, *, may_be_empty: bool = False) -> dict[str, Any]:
    """Read a YAML file that contains a mapping. Raises FileError for an unreadable file or other content.

    may_be_empty: return an empty mapping for a file without content, such as one of comments only.
    """
    tree = parse_yaml(read_text(path, MAX_YAML_BYTES), str(path), object)
    if tree is None and may_be_empty:
        return {}
    require_kind(tree, dict, str(path))
    return tree  # type: ignore[no-any-return]


def parse_yaml(text: str, origin: str, kind: type = dict) -> Any:
    """Parse a YAML value of the given type. origin: file name for error messages. Raises ContentError."""
    try:
        value = yaml.load(text, _Loader)
    except _LimitError as error:
        raise ContentError(f"{origin}: {error}") from error
    except yaml.YAMLError as error:
        raise ContentError(f"{origin}: not YAML ({' '.join(str(error).split())})") from error
    except (ValueError, OverflowError) as error:
        raise ContentError(f"{origin}: a value that cannot be read ({str(error).partition(';')[0]})") from error
    require_kind(value, kind, origin)
    return value


class _LimitError(Exception):
    """A limit of this module is exceeded, or a key is duplicated."""


class _Loader(yaml.SafeLoader):
    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _LimitError(f"nested deeper than the limit of {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None and _size(node, {}) > MAX_NODES:
            raise _LimitError(f"its aliases expand to more than the limit of {MAX_NODES:,} values")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [
            key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and not key.tag.endswith("merge")
        ]
        if len(set(keys)) < len(keys):
            twice = next(key for index, key in enumerate(keys) if key in keys[:index])
            raise _LimitError(f"key {twice!r} is given twice at line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


# YAML 1.2's core schema: tag -> (pattern, first characters)
_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
_TAG = "tag:yaml.org,2002:"
# copies: PyYAML's table is shared by all users of SafeLoader
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag.removeprefix(_TAG) not in (*_SCALARS, "timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
    """Also quotes texts such as `1e-3`, which are numbers in YAML 1.2 only."""


for _name, (_pattern, _characters) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z"), list(_characters))


def dump_yaml(tree: Any) -> str:
    """Return a tree of plain values as YAML that YAML 1.1 and 1.2 read alike."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _size(node: Any, known: dict[int, float]) -> float:
    """Return the number of values of a node with its aliases expanded; infinite if the node contains itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        children = node.value if isinstance(node.value, list) else []
        pairs = (part for child in children for part in (child if isinstance(child, tuple) else (child,)))
        known[id(node)] = 1 + sum(_size(part, known) for part in pairs)
    return known[id(node)]
