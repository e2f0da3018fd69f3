"""containerd's filter syntax."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from layerfs.contract import Info, Kind
from layerfs.errors import InvalidArgument
from layerfs.filters import compile_filters

NOW = datetime(2026, 1, 1, tzinfo=UTC)
INFO = Info("sha256:abc", Kind.COMMITTED, "base/one", NOW, NOW, {"role": "layer", "a.b/c": "d e", "empty": ""})


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ((), True),
        (("name==sha256:abc",), True),
        (("name!=sha256:abc",), False),
        (("kind==committed",), True),
        (("kind==active",), False),
        (("parent==base/one,kind==committed",), True),
        (("parent==base/one,kind==view",), False),
        (("kind==view", "parent==base/one"), True),
        (("kind==view", "parent==two"), False),
        (("labels.role==layer",), True),
        (("labels.role",), True),
        (("labels.empty",), False),
        (("labels.missing",), False),
        (("labels.missing!=x",), True),
        (('labels."a.b/c"=="d e"',), True),
        (("labels.role~=^la",), True),
        (("labels.role~=/yer$/",), True),
        (("labels.role~=|^x|",), False),
        (("labels.missing~=.*",), False),
        (("unknown==x",), False),
        (('name=="sha256:abc"',), True),
    ],
)
def test_what_a_filter_lets_pass(filters: tuple[str, ...], *, passes: bool) -> None:
    assert compile_filters(filters)(INFO) is passes


@pytest.mark.parametrize(
    "text", ["", "==", "name==", "name=x", "name==a,", "name==a b", "labels.", "name~=(", 'name=="a', "1name", ",name"]
)
def test_malformed_filters_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        compile_filters((text,))
