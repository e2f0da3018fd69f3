"""The wire format of protocol buffers, as far as containerd's messages need it (protobuf.dev, "Encoding").

Fields that nobody asks for are skipped. What is wrong is `InvalidArgument`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from layerfs.errors import InvalidArgument

_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
_FIXED: Final = {_FIXED64: 8, _FIXED32: 4}
_SMALL: Final = tuple(bytes((value,)) for value in range(0x80))
"""Integers of one byte."""
_NESTED: Final = 100
"""Groups inside groups: an old form that nobody writes, skipped so deep."""


class Message:
    """The fields of a message that was received: of a field that occurs more than once, all values in their order."""

    def __init__(self, data: bytes) -> None:
        self._values: dict[int, list[bytes]] = {}
        reader = _Reader(data)
        while not reader.done:
            number, value = reader.field()
            if value is not None:
                self._values.setdefault(number, []).append(value)

    def texts(self, number: int) -> tuple[str, ...]:
        """Return the strings of a repeated field."""
        try:
            return tuple(value.decode() for value in self._values.get(number, ()))
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"field {number} of a message is no text") from error

    def text(self, number: int) -> str:
        """Return a string; one that is missing is empty, of several the last counts."""
        found = self.texts(number)
        return found[-1] if found else ""

    def messages(self, number: int) -> tuple[Message, ...]:
        """Return the messages of a repeated field."""
        return tuple(Message(value) for value in self._values.get(number, ()))

    def message(self, number: int) -> Message:
        """Return a message; parts of it that come one after the other are one (same document, "Last One Wins")."""
        return Message(b"".join(self._values.get(number, ())))

    def texts_by_text(self, number: int) -> dict[str, str]:
        """Return a map from strings to strings, which is a repeated message of two fields."""
        return {entry.text(1): entry.text(2) for entry in self.messages(number)}


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def done(self) -> bool:
        return self._at >= len(self._data)

    def field(self, depth: int = 0) -> tuple[int, bytes | None]:
        """Read a field; its value is None for what holds no bytes, and is read over."""
        key = self._varint()
        number, kind = key >> 3, key & 7
        if not number:
            raise _broken("a field without a number")
        if kind == _BYTES:
            return number, self._take(self._varint())
        if kind == _VARINT:
            self._varint()
        elif kind in _FIXED:
            self._take(_FIXED[kind])
        elif kind == _GROUP and depth < _NESTED:
            self._skip_group(number, depth)
        else:
            raise _broken(f"a field of type {kind}")
        return number, None

    def _skip_group(self, number: int, depth: int) -> None:
        while True:
            at = self._at
            key = self._varint()
            if key & 7 == _GROUP_END:
                if key >> 3 != number:
                    raise _broken("a group that ends as another one")
                return
            self._at = at
            self.field(depth + 1)

    def _varint(self) -> int:
        data, at = self._data, self._at
        value = shift = 0
        while at < len(data) and shift < 70:  # noqa: PLR2004  ten bytes of seven bits hold 64
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004  the bit that says "more follows"
                self._at = at
                return value
            shift += 7
        raise _broken("a number without end")

    def _take(self, size: int) -> bytes:
        value = self._data[self._at : self._at + size]
        if len(value) < size:
            raise _broken("a field that is longer than its message")
        self._at += size
        return value


def number(field: int, value: int) -> bytes:
    """Return a field with an integer, negative ones as 64 bits; nothing for 0, which is what a missing one means."""
    return _encode(field << 3 | _VARINT) + _encode(value & (1 << 64) - 1) if value else b""


def text(field: int, value: str) -> bytes:
    """Return a field with a string; nothing for an empty one."""
    if not value:
        return b""
    data = value.encode()  # a list has tens of thousands of these, so `message` is not called
    return _encode(field << 3 | _BYTES) + _encode(len(data)) + data


def texts(field: int, values: Iterable[str]) -> bytes:
    """Return a repeated field of strings."""
    return b"".join(message(field, value.encode()) for value in values)


def message(field: int, value: bytes) -> bytes:
    """Return a field with a message, or bytes."""
    return _encode(field << 3 | _BYTES) + _encode(len(value)) + value


def texts_by_text(field: int, values: Mapping[str, str]) -> bytes:
    """Return a map from strings to strings."""
    return b"".join(message(field, text(1, key) + text(2, value)) for key, value in values.items())


def _encode(value: int) -> bytes:
    if value < 0x80:  # noqa: PLR2004  seven bits in each byte
        return _SMALL[value]
    out = bytearray()
    while value >= 0x80:  # noqa: PLR2004  the same
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _broken(what: str) -> InvalidArgument:
    return InvalidArgument(f"a message with {what}", hint="is the client one of containerd's snapshots service?")
