"""Values to JSON and back, by the annotations of their dataclasses; and the JSON schema that the same annotations say.

A field that is None or has its default value may be left out when reading; writing leaves none out.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from layerfs.errors import Corrupt

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_T = TypeVar("_T")

_LARGEST = 2**63
"""No count of bytes, seconds or anything else in a result is beyond this."""
_SIMPLE: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def encode(value: object) -> Json:
    """Return the JSON of a value: an object for a dataclass, a list for a tuple, ISO 8601 for a moment."""
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [encode(one) for one in cast("tuple[object, ...]", value)]
    if isinstance(value, StrEnum):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"no JSON for {type(value).__name__}")


def decode(kind: type[_T], data: Json, where: str = "") -> _T:
    """Return the value of type ``kind`` that JSON stands for; raise `Corrupt` that names the place of what is wrong."""
    return cast("_T", _decode(kind, data, where or kind.__name__))


def _decode(kind: Any, data: Json, where: str) -> object:  # noqa: ANN401  a type as annotations have it
    choices = _choices(kind)
    if choices:
        return None if data is None else _decode(choices[0], data, where)
    if get_origin(kind) is tuple:
        return _decode_tuple(get_args(kind), data, where)
    if is_dataclass(kind):
        return _decode_fields(cast("type", kind), data, where)
    if kind is datetime or (isinstance(kind, type) and issubclass(kind, StrEnum)):
        return _decode_word(kind, data, where)
    wanted: tuple[type, ...] = (int, float) if kind is float else (kind,)
    if not isinstance(data, wanted) or (isinstance(data, bool) and kind is not bool):
        raise Corrupt(f"{where} is not of type {_SIMPLE[kind]}")
    return data if isinstance(data, str) else _sane(cast("float", data), kind, where)


def _sane(number: float, kind: type, where: str) -> float:
    """Return a number that arithmetic and plots can bear: Python's JSON reads ``NaN`` and integers of any length."""
    if not abs(number) <= _LARGEST:
        raise Corrupt(f"{where} is no number that can be measured")
    return float(number) if kind is float else number


def _choices(kind: Any) -> tuple[Any, ...]:  # noqa: ANN401  as above
    """Return the type of an optional value in a tuple of one, or () for any other annotation."""
    if get_origin(kind) not in {Union, types.UnionType}:
        return ()
    return tuple(one for one in get_args(kind) if one is not types.NoneType)


def _decode_tuple(items: tuple[Any, ...], data: Json, where: str) -> object:
    if not isinstance(data, list):
        raise Corrupt(f"{where} is not a list")
    if items[-1] is Ellipsis:
        return tuple(_decode(items[0], one, f"{where}[{number}]") for number, one in enumerate(data))
    if len(data) != len(items):
        raise Corrupt(f"{where} does not have {len(items)} items")
    return tuple(_decode(kind, one, where) for kind, one in zip(items, data, strict=True))


def _decode_fields(kind: type, data: Json, where: str) -> object:
    if not isinstance(data, dict):
        raise Corrupt(f"{where} is not an object")
    hints = _hints(kind)
    given = {}
    for field in fields(kind):
        if field.name in data:
            given[field.name] = _decode(hints[field.name], data[field.name], f"{where}.{field.name}")
        elif not _has_default(field):
            raise Corrupt(f"{where} has no {field.name!r}")
    return kind(**given)


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _decode_word(kind: Any, data: Json, where: str) -> object:  # noqa: ANN401  as above
    if not isinstance(data, str):
        raise Corrupt(f"{where} is not a string")
    try:
        return datetime.fromisoformat(data) if kind is datetime else kind(data)
    except ValueError as error:
        raise Corrupt(f"{where} cannot be {data!r}") from error


def schema(kind: Any) -> dict[str, Json]:  # noqa: ANN401  as above
    """Return the JSON schema (draft 2020-12) of what `encode` makes of a type, without definitions apart."""
    choices = _choices(kind)
    if choices:
        return {"anyOf": [schema(choices[0]), {"type": "null"}]}
    if get_origin(kind) is tuple:
        return _tuple_schema(get_args(kind))
    if kind is datetime:
        return {"type": "string", "format": "date-time"}
    if is_dataclass(kind):
        return _fields_schema(cast("type", kind))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"enum": [str(one) for one in kind]}
    return {"type": _SIMPLE[kind]}


def _tuple_schema(items: tuple[Any, ...]) -> dict[str, Json]:
    if items[-1] is Ellipsis:
        return {"type": "array", "items": schema(items[0])}
    return {"type": "array", "prefixItems": [schema(one) for one in items], "minItems": len(items), "items": False}


def _fields_schema(kind: type) -> dict[str, Json]:
    hints = _hints(kind)
    return {
        "type": "object",
        "description": " ".join((kind.__doc__ or "").split()),
        "properties": {field.name: schema(hints[field.name]) for field in fields(kind)},
        "required": [field.name for field in fields(kind) if not _has_default(field)],
    }
