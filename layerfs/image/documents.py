"""Documents: the JSON of images as strangers send it, read within limits and field by field.

Every refusal is a `Corrupt` that names the document and the field ("manifest sha256:…: layers[3].size is …"). What two
readers could understand differently is refused too: a key that is there twice, or twice but for upper and lower case,
which Go's decoder takes as the same.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeVar

from layerfs.errors import Corrupt, InvalidArgument, Unsupported
from layerfs.layer.digest import Digest

MAX_DOCUMENT: Final = 4 << 20
"""Bytes of one JSON document: what registries accept as a manifest (distribution-spec, "Pushing Manifests")."""
MAX_DEPTH: Final = 64
"""Objects and arrays inside each other."""
MAX_VALUES: Final = 250_000
"""Values of one document: what keeps 4 MiB of "[],[],…" from becoming 200 MiB of objects."""
MAX_ITEMS: Final = 10_000
"""Entries of one list that layerfs reads: layers, manifests, history, environment."""

_SHOWN: Final = 80
"""Characters of a stranger's value that an error repeats."""
_ABSENT: Final = object()
_T = TypeVar("_T")


def shown(value: object) -> str:
    """Return a value of a stranger's document as an error may show it: short and printable."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def parse_document(raw: bytes, what: str) -> Any:  # noqa: ANN401  JSON is any value until `Fields` has looked at it
    """Return the value of a JSON text; ``what`` names the document in the errors.

    Raise `Corrupt` for what is too large, too deep, no UTF-8, no JSON, or ambiguous.
    """
    if len(raw) > MAX_DOCUMENT:
        raise Corrupt(f"{what} has {len(raw)} bytes: more than the {MAX_DOCUMENT} that a document may have")
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_VALUES:
        raise Corrupt(f"{what} has more than {MAX_VALUES} values")
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError) as error:  # ValueError: bad UTF-8, bad JSON, and numbers of 4,300 digits
        raise Corrupt(f"{what} is no JSON document: {error}") from error
    _check_depth(value, what)
    return value


def write_document(value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> bytes:
    """Return the one JSON text of a value: keys in their order, no spaces, ASCII."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def format_time(moment: datetime) -> str:
    """Return a moment as RFC 3339 in UTC, as image-spec config.md wants it; raise `InvalidArgument` without a zone."""
    if moment.tzinfo is None:
        raise InvalidArgument(f"the time {moment.isoformat()} has no time zone")
    whole = moment.microsecond == 0
    text = moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds" if whole else "microseconds")
    return f"{text}Z"


def parse_time(text: str) -> datetime:
    """Return the moment of an RFC 3339 text, cut to microseconds; raise ``ValueError`` for other text."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None or "T" not in text.upper():
        raise ValueError(text)
    return moment


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(twice)} is there twice in one object")
    return made


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _no_number(text)
    return number


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{shown(text)} is no number that JSON has")


def _check_depth(value: object, what: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = [node for node in level if isinstance(node, dict | list)]
        if not containers:
            return
        level = [child for node in containers for child in _children(node)]
    raise Corrupt(f"{what} has more than {MAX_DEPTH} objects and arrays inside each other")


def _children(node: dict[str, object] | list[object]) -> Iterable[object]:
    return node.values() if isinstance(node, dict) else node


class Fields:
    """An object of a document, asked field by field; every answer has the type that was asked for.

    ``where`` is how errors name the object: the document, and the path inside it. A field that is ``null`` counts as
    absent, as in Go's decoder, by which most images are written.
    """

    __slots__ = ("_values", "where")

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise Corrupt(f"{where} is {_kind(value)}, not an object")
        self._values: dict[str, Any] = value
        self.where = where
        folded: dict[str, str] = {}
        for key in value:
            if folded.setdefault(key.casefold(), key) != key:
                raise Corrupt(f"{where} has the field {shown(key)} twice but for upper and lower case")

    @classmethod
    def parse(cls, raw: bytes, what: str) -> Fields:
        """Read a document that is one object."""
        return cls(parse_document(raw, what), what)

    def name(self, field: str) -> str:
        """Return how errors name a field of this object."""
        separator = ": " if self.where.count(": ") == 0 else "."
        return f"{self.where}{separator}{field}"

    def has(self, field: str) -> bool:
        """Tell whether the field is there and is not null."""
        return self._values.get(field) is not None

    def text(self, field: str, default: str | None = None) -> str:
        """Return a string."""
        return self._typed(field, str, "a string", default)

    def integer(self, field: str) -> int:
        """Return an integer that is not negative and that int64 holds."""
        number = self._typed(field, int, "an integer", None)
        if not 0 <= number < 1 << 63:
            raise Corrupt(f"{self.name(field)} is {shown(number)}: out of range")
        return number

    def boolean(self, field: str) -> bool:
        """Return a boolean, False where the field is absent."""
        value = self._values.get(field)
        if value is not None and not isinstance(value, bool):
            raise Corrupt(f"{self.name(field)} is {_kind(value)}, not a boolean")
        return bool(value)

    def digest(self, field: str) -> Digest:
        """Return a digest; raise `Unsupported` for another algorithm than sha256."""
        return self.convert(field, Digest.parse, self.text(field))

    def time(self, field: str) -> datetime | None:
        """Return a moment, or None where the field is absent."""
        return self.convert(field, parse_time, self.text(field)) if self.has(field) else None

    def child(self, field: str) -> Fields | None:
        """Return an object, or None where the field is absent."""
        return Fields(self._values[field], self.name(field)) if self.has(field) else None

    def children(self, field: str, *, required: bool = False) -> tuple[Fields, ...]:
        """Return a list of objects."""
        items = self._list(field, required=required)
        return tuple(Fields(item, f"{self.name(field)}[{place}]") for place, item in enumerate(items))

    def texts(self, field: str, *, required: bool = False) -> tuple[str, ...]:
        """Return a list of strings."""
        items = self._list(field, required=required)
        return tuple(self._check(item, str, "a string", f"{field}[{place}]") for place, item in enumerate(items))

    def digests(self, field: str) -> tuple[Digest, ...]:
        """Return a list of digests, which must be there."""
        items = self.texts(field, required=True)
        return tuple(self.convert(f"{field}[{place}]", Digest.parse, item) for place, item in enumerate(items))

    def text_map(self, field: str) -> Mapping[str, str]:
        """Return an object of strings."""
        value = self._typed(field, dict, "an object", {})
        return MappingProxyType(
            {
                self._check(key, str, "a string", field): self._check(item, str, "a string", f"{field}[{shown(key)}]")
                for key, item in value.items()
            }
        )

    def keys(self, field: str) -> tuple[str, ...]:
        """Return the keys of an object that is a set, such as ``Volumes``."""
        value = self._typed(field, dict, "an object", {})
        return tuple(self._check(key, str, "a string", field) for key in value)

    def convert(self, field: str, make: Callable[[str], _T], text: str) -> _T:
        """Return ``make(text)``; its ``ValueError`` or `InvalidArgument` becomes a `Corrupt` that names the field."""
        try:
            return make(text)
        except (ValueError, InvalidArgument) as error:
            raise Corrupt(f"{self.name(field)} is malformed: {shown(text)}") from error
        except Unsupported as error:
            raise Unsupported(f"{self.name(field)}: {error.message}", hint=error.hint) from error

    def _list(self, field: str, *, required: bool) -> list[Any]:
        items = self._typed(field, list, "a list", None if required else [])
        if len(items) > MAX_ITEMS:
            raise Corrupt(f"{self.name(field)} has {len(items)} entries: more than {MAX_ITEMS}")
        return items

    def _typed(self, field: str, kind: type[_T], words: str, default: _T | None) -> _T:
        value = self._values.get(field)
        if value is None:
            if default is None:
                raise Corrupt(f"{self.name(field)} is missing")
            return default
        return self._check(value, kind, words, field)

    def _check(self, value: object, kind: type[_T], words: str, field: str) -> _T:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise Corrupt(f"{self.name(field)} is {_kind(value)}, not {words}")
        if isinstance(value, str) and not _encodes(value):
            raise Corrupt(f"{self.name(field)} has half of a surrogate pair, which is no text")
        return value


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a fraction", str: "a string", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "null")
