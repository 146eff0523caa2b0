"""Builds frozen dataclasses from parsed JSON, checking presence and type of every field."""

import dataclasses
import types
import typing
from datetime import datetime
from functools import cache
from typing import Any, TypeVar, get_args, get_origin

from lit_illada.errors import UserError
from lit_illada.runtime.files import KINDS, ContentError, require_kind

T = TypeVar("T")
MAX_INTEGER = 2**63 - 1  # what numpy, torch and the file formats hold


def from_record(schema: type[T], record: Any, origin: str) -> T:
    """Build a dataclass from a JSON object. Unknown keys are ignored; missing keys take the field's default.

    origin: file name for error messages. Supported types are bool, int, float, str, datetime (an ISO 8601 string,
    stored as it is), None, Any, list[...], dict[str, ...], unions of them and dataclasses. Raises ContentError for a
    missing field, another type, or an integer beyond 64 bits.
    """
    require_kind(record, dict, origin)
    hints = _hints(schema)  # type: ignore[arg-type]
    values = {}
    for item in dataclasses.fields(schema):  # type: ignore[arg-type]
        if item.name in record:
            values[item.name] = checked(hints[item.name], record[item.name], f"{origin}: {item.name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ContentError(f"{origin}: lacks {item.name!r}")
    try:
        return schema(**values)
    except ContentError:
        raise
    except UserError as error:  # of the dataclass's own checks, which know no file
        raise ContentError(f"{origin}: {error}") from error


def require_fields(record: dict[str, Any], required: dict[str, Any], origin: str) -> dict[str, Any]:
    """Check that the required fields are present with their types and return the record.

    required: type hints by name, as `from_record` understands them. Raises ContentError.
    """
    for name, hint in required.items():
        if name not in record:
            raise ContentError(f"{origin}: lacks {name!r}")
        checked(hint, record[name], f"{origin}: {name}")
    return record


def checked(hint: Any, value: Any, origin: str) -> Any:
    """Check a value against a type hint and return it; see `from_record`."""
    if hint is Any or hint is object:
        return value
    if dataclasses.is_dataclass(hint):
        return from_record(hint, value, origin)  # type: ignore[arg-type]
    parts = get_args(hint)
    if isinstance(hint, types.UnionType) or get_origin(hint) is typing.Union:
        fitting = next((part for part in parts if _is_plain(part, value)), None)
        if fitting is None:
            raise _wrong(hint, value, origin)
        return checked(fitting, value, origin)
    if not _is_plain(hint, value):
        raise _wrong(hint, value, origin)
    if parts and isinstance(value, list):
        return [checked(parts[0], item, f"{origin}[{index}]") for index, item in enumerate(value)]
    if parts and isinstance(value, dict):
        return {key: checked(parts[1], item, f"{origin}.{key}") for key, item in value.items()}
    return value


@cache
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def _is_plain(hint: Any, value: Any) -> bool:
    """Whether the value is of the hint's outermost type."""
    kind = get_origin(hint) or hint
    if dataclasses.is_dataclass(kind):
        return isinstance(value, dict)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is datetime:
        return isinstance(value, str) and _is_time(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INTEGER
    return isinstance(value, kind)


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _wrong(hint: Any, value: Any, origin: str) -> ContentError:
    parts = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    wanted = " or ".join(KINDS.get(get_origin(part) or part, getattr(part, "__name__", str(part))) for part in parts)
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return ContentError(f"{origin} is an integer beyond 64 bits")
    text = repr(value)
    return ContentError(f"{origin} must be {wanted}, not {text if len(text) <= 60 else text[:57] + '...'}")
