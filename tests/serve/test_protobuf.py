"""Messages on the wire: what others write is read, what we write others read, and nothing hostile gets through."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfs.contract import Info, Kind, Mount, Usage
from layerfs.errors import InvalidArgument
from layerfs.serve import messages, protobuf
from layerfs.serve.protobuf import Message

# By hand after the encoding's description: field 1 "layerfs", 2 "key", 3 "parent", 4 {"a": "b"} and {"c": ""}.
PREPARE = b"\x0a\x07layerfs\x12\x03key\x1a\x06parent\x22\x06\x0a\x01a\x12\x01b\x22\x03\x0a\x01c"


def test_a_request_is_read() -> None:
    assert messages.CreateRequest.parse(PREPARE) == messages.CreateRequest("key", "parent", {"a": "b", "c": ""})


def test_fields_of_later_versions_are_skipped() -> None:
    unknown = (
        protobuf.number(5, 1 << 63)
        + protobuf.message(6, b"\xff\xfe")
        + b"\x39" + b"\0" * 8  # field 7, 64 bits
        + b"\x45" + b"\0" * 4  # field 8, 32 bits
        + b"\x4b\x53\x08\x01\x54\x4c"  # field 9, a group with a group inside
    )  # fmt: skip
    assert messages.CreateRequest.parse(unknown + PREPARE + unknown) == messages.CreateRequest.parse(PREPARE)


def test_an_update_names_what_it_changes() -> None:
    info = protobuf.text(1, "key") + protobuf.text(2, "parent") + protobuf.texts_by_text(6, {"l": "1"})
    data = protobuf.message(2, info) + protobuf.message(3, protobuf.texts(1, ["labels.l", "labels.m"]))
    assert messages.UpdateRequest.parse(data) == messages.UpdateRequest("key", {"l": "1"}, ("labels.l", "labels.m"))


def test_answers_hold_what_the_fields_say() -> None:
    moment = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)
    info = Message(messages.info(Info("name", Kind.COMMITTED, "below", moment, moment, {"k": "v"}))).message(1)
    assert (info.text(1), info.text(2), info.texts_by_text(6)) == ("name", "below", {"k": "v"})
    assert messages.usage(Usage(300, 2)) == b"\x08\xac\x02\x10\x02"
    timestamp = protobuf.number(1, int(moment.timestamp())) + protobuf.number(2, 123456000)
    assert protobuf.message(4, timestamp) + protobuf.message(5, timestamp) in messages.info(
        Info("", Kind.VIEW, "", moment, moment)
    )
    mount = Message(messages.mounts([Mount("overlay", "overlay", ("ro", ""))])).message(1)
    assert (mount.text(1), mount.text(2), mount.texts(4)) == ("overlay", "overlay", ("ro", ""))


@pytest.mark.parametrize(
    "data",
    [
        b"\x12\x7fx",  # longer than the message
        b"\x12",  # a length that is missing
        b"\x80" * 11,  # a number without end
        b"\x00",  # no field has the number 0
        b"\x16\x01",  # a wire type that does not exist
        b"\x0c",  # the end of a group that did not begin
        b"\x4b\x54",  # a group that ends as another one
        b"\x4b" * 200,  # groups inside groups
        b"\x12\x01\xff",  # no UTF-8
    ],
)
def test_what_is_wrong_is_an_invalid_argument(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        messages.KeyRequest.parse(data)


@given(st.binary(max_size=200))
def test_nothing_else_comes_of_random_bytes(data: bytes) -> None:
    for kind in (messages.CreateRequest, messages.UpdateRequest, messages.ListRequest, messages.CommitRequest):
        try:
            kind.parse(data)
        except InvalidArgument:
            continue


@given(st.dictionaries(st.text(), st.text()), st.lists(st.text()))
def test_texts_survive(labels: dict[str, str], texts: list[str]) -> None:
    message = Message(protobuf.texts_by_text(4, labels) + protobuf.texts(70_000, texts))
    assert message.texts_by_text(4) == labels
    assert message.texts(70_000) == tuple(texts)
