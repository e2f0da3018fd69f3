"""The headers' compression, by the examples of RFC 7541 and by blocks that are wrong."""

from __future__ import annotations

import pytest

from layerfs.serve.frames import ErrorCode, ProtocolError
from layerfs.serve.hpack import Decoder, encode

LIMIT = 1 << 16

# Appendix C.4 and C.6: three blocks each on one connection, Huffman-coded, the later ones by the table.
REQUESTS = [
    ("828684418cf1e3c2e5f23a6ba0ab90f4ff", [":method GET", ":scheme http", ":path /", ":authority www.example.com"]),
    (
        "828684be5886a8eb10649cbf",
        [":method GET", ":scheme http", ":path /", ":authority www.example.com", "cache-control no-cache"],
    ),
    (
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        [
            ":method GET",
            ":scheme https",
            ":path /index.html",
            ":authority www.example.com",
            "custom-key custom-value",
        ],
    ),
]


def test_the_examples_of_the_rfc_are_read() -> None:
    decoder = Decoder()
    for block, fields in REQUESTS:
        found = decoder.decode(bytes.fromhex(block), LIMIT)
        assert [f"{name.decode()} {value.decode()}" for name, value in found] == fields


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 300, 20_000])
def test_what_is_written_is_read(size: int) -> None:
    value = bytes(65 + number % 26 for number in range(size))
    assert Decoder().decode(encode(b"grpc-message", value), LIMIT) == [(b"grpc-message", value)]


def test_the_table_forgets_what_does_not_fit() -> None:
    decoder = Decoder()
    for number in range(200):
        decoder.decode(b"\x40\x01a" + b"\x1e" + b"%030d" % number, LIMIT)
    (newest,) = decoder.decode(b"\xbe", LIMIT)
    assert newest == (b"a", b"%030d" % 199)
    with pytest.raises(ProtocolError, match="no header has the index"):
        decoder.decode(b"\xff\x64", LIMIT)  # 62 + 4096 // (1 + 30 + 32) and further


@pytest.mark.parametrize(
    "block",
    [
        "80",  # index 0
        "be",  # of an empty table
        "ff8080808080808080808001",  # an integer without end
        "ff",  # one that is cut off
        "0001",  # a name that is cut off
        "000161ff",  # a value whose length is cut off
        "00016181ff",  # padding of eight bits
        "00016184ffffffff",  # the end mark itself
        "0001618200fe",  # padding of zeros
        "823fe11f",  # a new size of the table after the first field
        "3fe2ff03",  # a table that is larger than we allow
    ],
)
def test_what_is_wrong_ends_the_connection(block: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        Decoder().decode(bytes.fromhex(block), LIMIT)
    assert raised.value.code is ErrorCode.COMPRESSION_ERROR


def test_a_small_block_cannot_stand_for_endless_headers() -> None:
    decoder = Decoder()
    decoder.decode(b"\x40" + encode(b"a", b"x" * 4000)[1:], LIMIT)
    with pytest.raises(ProtocolError) as raised:
        decoder.decode(b"\xbe" * 1000, LIMIT)
    assert raised.value.code is ErrorCode.ENHANCE_YOUR_CALM
