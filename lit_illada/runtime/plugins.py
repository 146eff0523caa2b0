"""Loads a user's own classes from `path/to/file.py:Class` or from an entry point of the group `lit_illada`.

Loading runs the file. A name is therefore loaded only after `allow`, which is called with what the user wrote: the
command line, and the YAML files of conf/. A name in a checkpoint, a data set or a downloaded config is refused.
"""

import dataclasses
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from lit_illada.errors import UserError, unknown
from lit_illada.runtime.lazy import LazyModule
from lit_illada.runtime.terminal import one_line

metadata = LazyModule("importlib.metadata")  # most commands name no class

GROUP = "lit_illada"
"""Group of entry points that name classes of installed packages."""

_allowed: set[str] = set()
_names: dict[type, str] = {}
_modules: dict[Path, ModuleType] = {}

T = TypeVar("T")


def allow(tree: Any) -> None:
    """Permits loading of every name in a tree of plain values that the user wrote, and every setting that is true."""
    if isinstance(tree, str):
        _allowed.add(tree)
    elif isinstance(tree, Mapping):
        _allowed.update(_permission(str(key)) for key, value in tree.items() if value is True)
        for value in tree.values():
            allow(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            allow(value)


def allow_assignment(key: str, value: Any) -> None:
    """Permits what KEY=VALUE on the command line names."""
    allow({key.rpartition(".")[2]: value})


def require_permission(path: str) -> None:
    """Raises UserError unless the user set this key to true: a saved or downloaded config cannot permit execution."""
    if _permission(path.rpartition(".")[2]) not in _allowed:
        raise UserError(f"{path} is true, which only you can set: if you trust what it allows, add {path}=true")


def _permission(key: str) -> str:
    return f"{key}=true"


def is_allowed(name: object) -> bool:
    """Whether the user wrote this name."""
    return isinstance(name, str) and name in _allowed


def is_plugin(name: object) -> bool:
    """Whether a name stands for a class outside the package: `file.py:Class`, or an entry point."""
    if not isinstance(name, str):
        return False
    return name.rpartition(":")[0].endswith(".py") or bool(metadata.entry_points(group=GROUP, name=name))


def load_class(name: str, base: type[T], where: str) -> type[T]:
    """The frozen dataclass that a name stands for.

    base: abstract base class, or protocol whose members the class must have. where: key or option, for messages.
    Raises UserError, in one line, for a name that the user did not write and for a file or class that does not fit.
    """
    if name not in _allowed:
        raise UserError(
            f"{where} is {name!r}, a class outside the package, which runs its file: it is loaded only where you name "
            f"it yourself; if you trust it, add {where}={name} to the command"
        )
    path, colon, attribute = name.rpartition(":")
    cls = _of_file(Path(path), attribute) if colon else _of_entry_point(name)
    _check(cls, name, base)
    _names[cls] = name
    return cls


def name_of(cls: type) -> str | None:
    """The name by which a class was loaded; None for a class of the package."""
    return _names.get(cls)


def files_of(config: Any) -> dict[str, str]:
    """SHA-256 of the source file of every user's class in a config, by the class's name."""
    names: dict[str, str] = {}
    for _, part, _ in parts_of(config):
        if (name := name_of(type(part))) is not None and (file := sys.modules[type(part).__module__].__file__):
            names[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return names


def parts_of(config: Any, key: str = "", is_listed: bool = False) -> Iterator[tuple[str, Any, bool]]:
    """(dotted key, dataclass, whether in a list) of every section of a config; those in a list have the list's key."""
    if dataclasses.is_dataclass(config):
        yield key, config, is_listed
        for item in dataclasses.fields(config):
            own = key if is_listed else f"{key}.{item.name}".lstrip(".")
            yield from parts_of(getattr(config, item.name), own, is_listed)
    elif isinstance(config, list | tuple):
        for each in config:
            yield from parts_of(each, key, is_listed=True)


def _of_file(path: Path, name: str) -> Any:
    if not path.is_file():
        raise UserError(f"{path}:{name}: no such file in {Path.cwd() if not path.is_absolute() else path.parent}")
    module = _modules.get(path.resolve()) or _imported(path.resolve(), path)
    if name not in vars(module):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        raise unknown(f"class of {path}", name, own)
    return vars(module)[name]


def _imported(path: Path, shown: Path) -> ModuleType:
    """Imports a file as a module of its own; dataclasses look their module up in sys.modules."""
    module_name = f"{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=6).hexdigest()}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        place = f"{shown}:{line}" if line else str(shown)
        raise UserError(one_line(f"{place}: cannot be imported: {type(error).__name__}: {error}")) from error
    _modules[path] = module
    return module


def _of_entry_point(name: str) -> Any:
    (point, *_) = metadata.entry_points(group=GROUP, name=name)
    try:
        return point.load()
    except Exception as error:
        raise UserError(one_line(f"entry point {name!r} = {point.value}: {type(error).__name__}: {error}")) from error


def _check(cls: Any, name: str, base: type) -> None:
    if not isinstance(cls, type):
        raise UserError(f"{name}: must be a class, not a {type(cls).__name__}")
    if "__dataclass_fields__" not in vars(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise UserError(f"{name}: must be a frozen dataclass: write @dataclass(frozen=True) above the class")
    if getattr(base, "_is_protocol", False):
        own = {key for parent in cls.__mro__[:-1] for key in vars(parent)}  # not __call__ of `type`
        missing = sorted(_members(base) - own)
        lacks = f"; it lacks {', '.join(missing)}" if missing else ""
    else:
        bases = ", ".join(parent.__name__ for parent in cls.__bases__)
        lacks = f"; its base is {bases}" if not issubclass(cls, base) else ""
        if not lacks and (abstract := getattr(cls, "__abstractmethods__", None)):
            lacks = f"; it lacks {', '.join(sorted(abstract))}"
    if lacks:
        kind = "have the members" if getattr(base, "_is_protocol", False) else "be a subclass"
        raise UserError(f"{name}: must {kind} of {base.__module__}.{base.__name__}{lacks}")


def _members(protocol: type) -> set[str]:
    """Names that a protocol requires, its fields and methods."""
    names = {*getattr(protocol, "__annotations__", {}), *vars(protocol)}
    return {name for name in names if not name.startswith("_") or name == "__call__"}


def is_open(base: Any) -> bool:
    """Whether classes of users may take the place of a base: an abstract class or a protocol, not a union."""
    is_abstract = bool(getattr(base, "__abstractmethods__", None)) or getattr(base, "_is_protocol", False)
    return isinstance(base, type) and is_abstract
