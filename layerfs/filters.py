"""containerd's filter syntax for snapshots: ``kind==active,labels."a.b"~=^v``.

A filter is a list of selectors joined by commas, all of which must hold; of several filters one is enough. A selector
is a field path, alone (the field is there and not empty) or with ``==``, ``!=`` or ``~=`` (a regular expression that is
found anywhere) and a value. Fields are ``name``, ``parent``, ``kind`` and ``labels.KEY``; a field or a value with other
than word characters is quoted as in Go, by ``"..."``; the expression after ``~=`` also by ``/.../`` or ``|...|``.
Source: containerd ``pkg/filters/parser.go``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from layerfs.contract import Info
from layerfs.errors import InvalidArgument

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_FIELD = re.compile(rf"{_QUOTED}|[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r"==|!=|~=")
_VALUE = re.compile(rf"{_QUOTED}|[^\s,]+")
_PATTERN = re.compile(rf"{_QUOTED}|/(?:[^/\\]|\\.)*/|\|(?:[^|\\]|\\.)*\||[^\s,]+")

Predicate = Callable[[Info], bool]


@dataclass(frozen=True, slots=True)
class _Selector:
    path: tuple[str, ...]
    operator: str
    value: str

    def holds(self, info: Info) -> bool:
        found = _field(info, self.path)
        match self.operator:
            case "==":
                return found == self.value
            case "!=":
                return found != self.value
            case "~=":
                return found is not None and re.search(self.value, found) is not None
            case _:
                return bool(found)


def compile_filters(filters: tuple[str, ...]) -> Predicate:
    """Return a function that tells whether a snapshot passes; no filter passes everything.

    Raise `InvalidArgument` that names the place at fault.
    """
    alternatives = [_Parser(text).parse() for text in filters]
    if not alternatives:
        return lambda _info: True
    return lambda info: any(all(selector.holds(info) for selector in selectors) for selectors in alternatives)


def _field(info: Info, path: tuple[str, ...]) -> str | None:
    match path:
        case ("name",):
            return info.name
        case ("parent",):
            return info.parent
        case ("kind",):
            return info.kind.value
        case ("labels", *rest) if rest:
            return info.labels.get(".".join(rest))
        case _:
            return None


class _Parser:
    """Read one filter from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> tuple[_Selector, ...]:
        selectors = [self._selector()]
        while self._at < len(self._text):
            if not self._take(re.compile(",")):
                raise self._error("a comma")
            selectors.append(self._selector())
        return tuple(selectors)

    def _selector(self) -> _Selector:
        path = [self._unquote(self._need(_FIELD, "a field name"))]
        while self._take(re.compile(r"\.")):
            path.append(self._unquote(self._need(_FIELD, "a field name")))
        operator = self._take(_OPERATOR) or ""
        value = ""
        if operator:
            value = self._unquote(self._need(_PATTERN if operator == "~=" else _VALUE, "a value"))
        if operator == "~=":
            try:
                re.compile(value)
            except re.error as error:
                raise InvalidArgument(f"filter {self._text!r}: {value!r} is no regular expression: {error}") from error
        return _Selector(tuple(path), operator, value)

    def _take(self, token: re.Pattern[str]) -> str | None:
        found = token.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found.group()

    def _need(self, token: re.Pattern[str], what: str) -> str:
        found = self._take(token)
        if found is None:
            raise self._error(what)
        return found

    def _unquote(self, token: str) -> str:
        if token[0] in "/|" and len(token) > 1 and token[-1] == token[0]:
            return token[1:-1].replace("\\" + token[0], token[0])
        if not token.startswith('"'):
            return token
        try:
            return str(json.loads(token))
        except ValueError as error:
            raise self._error("a quoted string that Go and JSON both read") from error

    def _error(self, what: str) -> InvalidArgument:
        return InvalidArgument(
            f"filter {self._text!r}: {what} is expected at character {self._at}",
            hint='write it like name==x, kind==active, labels."a.b"~=^v; join several by commas',
        )
