"""JSON of strangers: within limits, unambiguous, and every refusal names the field."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfs.errors import Corrupt, InvalidArgument, LayerfsError, Unsupported
from layerfs.image.documents import (
    MAX_DEPTH,
    MAX_DOCUMENT,
    MAX_ITEMS,
    Fields,
    format_time,
    parse_document,
    parse_time,
    write_document,
)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "no JSON document"),
        (b"{", "no JSON document"),
        (b'{"a":1} x', "no JSON document"),
        (b'{"a":\xff}', "no JSON document"),
        (b"\xef\xbb\xbf{}", "no JSON document"),
        (b'{"a":NaN}', "no number"),
        (b'{"a":Infinity}', "no number"),
        (b'{"a":1e999}', "no number"),
        (b'{"a":' + b"9" * 5000 + b"}", "no JSON document"),
        (b'{"a":1,"b":2,"a":1}', "'a' is there twice"),
        (b"[" * 100_000 + b"]" * 100_000, "no JSON document"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "inside each other"),
        (b"[" + b"{}," * 250_000 + b"{}]", "more than 250000 values"),
        (b" " * (MAX_DOCUMENT + 1), f"{MAX_DOCUMENT + 1} bytes"),
    ],
)
def test_what_is_no_sound_document_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(Corrupt, match=words):
        parse_document(raw, "it")


def test_depth_up_to_the_limit_is_read() -> None:
    assert parse_document(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, "it")


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:1ae\\u', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused_in_our_words(raw: bytes) -> None:
    with contextlib.suppress(LayerfsError):
        parse_document(raw, "it")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON))
def test_a_document_survives_writing_and_reading(value: dict[str, object]) -> None:
    raw = write_document(value)
    assert parse_document(raw, "it") == value
    assert write_document(parse_document(raw, "it")) == raw


@pytest.mark.parametrize(
    ("raw", "ask", "words"),
    [
        (b"[]", lambda f: f, "it is a list, not an object"),
        (b'"x"', lambda f: f, "it is a string, not an object"),
        (b'{"a":1,"A":2}', lambda f: f, "upper and lower case"),
        (b"{}", lambda f: f.text("a"), "it: a is missing"),
        (b'{"a":null}', lambda f: f.text("a"), "it: a is missing"),
        (b'{"a":1}', lambda f: f.text("a"), "it: a is an integer, not a string"),
        (b'{"a":"\\ud800"}', lambda f: f.text("a"), "it: a has half of a surrogate pair"),
        (b'{"a":true}', lambda f: f.integer("a"), "it: a is a boolean, not an integer"),
        (b'{"a":1.5}', lambda f: f.integer("a"), "it: a is a fraction, not an integer"),
        (b'{"a":-1}', lambda f: f.integer("a"), "it: a is -1: out of range"),
        (b'{"a":9223372036854775808}', lambda f: f.integer("a"), "out of range"),
        (b'{"a":"yes"}', lambda f: f.boolean("a"), "it: a is a string, not a boolean"),
        (b'{"a":{"b":{"c":3}}}', lambda f: f.child("a").child("b").text("c"), "it: a.b.c is an integer"),
        (b'{"a":[{},{"b":3}]}', lambda f: f.children("a")[1].text("b"), r"it: a\[1\].b is an integer"),
        (b'{"a":[[]]}', lambda f: f.children("a"), r"it: a\[0\] is a list, not an object"),
        (b'{"a":{}}', lambda f: f.texts("a"), "it: a is an object, not a list"),
        (b'{"a":["b",null]}', lambda f: f.texts("a"), r"it: a\[1\] is null, not a string"),
        (b"{}", lambda f: f.texts("a", required=True), "it: a is missing"),
        (b'{"a":{"k":1}}', lambda f: f.text_map("a"), r"it: a\['k'\] is an integer"),
        (b'{"a":"x"}', lambda f: f.keys("a"), "it: a is a string, not an object"),
        (b'{"a":"sha256:xyz"}', lambda f: f.digest("a"), "it: a is malformed: 'sha256:xyz'"),
        (b'{"a":"yesterday"}', lambda f: f.time("a"), "it: a is malformed: 'yesterday'"),
        (b'{"a":"2024-01-01"}', lambda f: f.time("a"), "it: a is malformed"),
        (b'{"a":"2024-01-01T00:00:00"}', lambda f: f.time("a"), "it: a is malformed"),
    ],
)
def test_refusals_name_the_field(raw: bytes, ask: object, words: str) -> None:
    assert callable(ask)
    with pytest.raises(Corrupt, match=words):
        ask(Fields.parse(raw, "it"))


def test_long_values_are_cut_in_errors() -> None:
    with pytest.raises(Corrupt) as caught:
        Fields.parse(write_document({"a": "x" * 100_000}), "it").digest("a")
    assert len(caught.value.message) < 200


def test_lists_have_a_limit() -> None:
    with pytest.raises(Corrupt, match=f"more than {MAX_ITEMS}"):
        Fields.parse(write_document({"a": ["x"] * (MAX_ITEMS + 1)}), "it").texts("a")


def test_another_algorithm_is_unsupported_and_named() -> None:
    with pytest.raises(Unsupported, match=r"it: a: .*sha512"):
        Fields.parse(write_document({"a": "sha512:" + "0" * 128}), "it").digest("a")


def test_null_counts_as_absent() -> None:
    fields = Fields.parse(b'{"a":null}', "it")
    assert fields.text("a", "default") == "default"
    assert fields.texts("a") == ()
    assert fields.children("a") == ()
    assert not fields.text_map("a")
    assert fields.child("a") is None
    assert fields.time("a") is None
    assert fields.boolean("a") is False


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-02-29T12:00:00Z", datetime(2024, 2, 29, 12, tzinfo=UTC)),
        ("2024-02-29T12:00:00.123456789Z", datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)),
        ("2024-02-29T12:00:00.5+02:00", datetime(2024, 2, 29, 10, 0, 0, 500000, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_times_of_go_are_read(text: str, moment: datetime) -> None:
    assert parse_time(text) == moment


def test_times_are_written_in_utc() -> None:
    moment = datetime(2024, 2, 29, 12, 0, 0, 250000, tzinfo=timezone(timedelta(hours=2)))
    assert format_time(moment) == "2024-02-29T10:00:00.250000Z"
    assert format_time(moment.replace(microsecond=0)) == "2024-02-29T10:00:00Z"
    with pytest.raises(InvalidArgument):
        format_time(datetime(2024, 2, 29))  # noqa: DTZ001  what must be refused
