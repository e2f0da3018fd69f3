"""Layers that nobody wrote: Hypothesis makes them, and nothing but a clear answer may come of any.

``LAYERFS_EXAMPLES`` is the number of cases; `tests/fuzz/fuzz_apply.py` goes on for as long as one likes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.fuzz.hostile import Choices, layer, survive
from tests.layer.archives import END, directory, file, symlink

pytestmark = pytest.mark.root


@settings(
    max_examples=int(os.environ.get("LAYERFS_EXAMPLES", "400")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(decisions=st.binary(max_size=400))
def test_a_layer_is_taken_or_refused(fresh_dir: Path, decisions: bytes) -> None:
    taken = survive(fresh_dir, layer(Choices(decisions)))
    event("taken" if taken else "refused")


_SOUND = b"".join([directory(b"a"), file(b"a/b", b"x" * 700), symlink(b"l", b"a"), file(b"l/c", b"y"), END])


@settings(
    max_examples=int(os.environ.get("LAYERFS_EXAMPLES", "200")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(edits=st.lists(st.tuples(st.integers(0, len(_SOUND) - 1), st.binary(min_size=1, max_size=12)), max_size=4))
def test_a_sound_layer_that_was_damaged(fresh_dir: Path, edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(_SOUND)
    for at, piece in edits:
        data[at : at + len(piece)] = piece
    survive(fresh_dir, bytes(data))


def test_the_fuzzer_knows_a_sound_layer(fresh_dir: Path) -> None:
    assert survive(fresh_dir, _SOUND)


def test_decisions_reach_layers_that_are_taken_and_such_that_are_not(fresh_dir: Path) -> None:
    seen = {survive(fresh_dir, layer(Choices(bytes([number, number * 7 % 256] * 20)))) for number in range(60)}
    assert seen == {True, False}
