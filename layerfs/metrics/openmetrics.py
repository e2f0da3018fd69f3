"""The text format of OpenMetrics: families of samples, written in one order.

A *family* has a name, a type and a help text, a *sample* labels and a value. Source: the OpenMetrics specification 1.0,
"Text Format" (https://prometheus.io/docs/specs/om/open_metrics_spec/). Only gauges and counters are written, which
Prometheus's older text format knows, too: so node_exporter's textfile collector reads the same file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from layerfs.errors import os_error
from layerfs.tree import fsync_dir

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_READABLE = 0o644


class MetricType(StrEnum):
    """What a family's values mean."""

    GAUGE = "gauge"
    """A state, that goes up and down."""
    COUNTER = "counter"
    """What was counted since the process began; its samples end in ``_total``."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A value under its labels."""

    value: float
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """Samples of one name, without ``_total``; the name ends in the unit, if there is one (bytes, seconds)."""

    name: str
    type: MetricType
    help: str
    samples: Sequence[Sample]
    unit: str = ""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a name that the format does not allow."""
        if not _NAME.fullmatch(self.name) or self.name.endswith("_total") or not self.name.endswith(self.unit):
            raise ValueError(f"{self.name!r} cannot be the name of a family with the unit {self.unit!r}")


def render(families: Iterable[Family]) -> str:
    """Write families as text, which ends in ``# EOF``."""
    return "".join(line + "\n" for line in (*(line for family in families for line in _lines(family)), "# EOF"))


def write(families: Iterable[Family], path: Path) -> None:
    """Write families to a file that everybody may read, in one step: who reads it never sees half of it."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.write_text(render(families), encoding="utf-8")
        new.chmod(_READABLE)
        new.replace(path)
        fsync_dir(path.parent)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise os_error(f"write the metrics to {path}", error) from error


def _lines(family: Family) -> Iterator[str]:
    yield f"# TYPE {family.name} {family.type}"
    if family.unit:
        yield f"# UNIT {family.name} {family.unit}"
    yield f"# HELP {family.name} {family.help.translate(_ESCAPES)}"
    suffix = "_total" if family.type is MetricType.COUNTER else ""
    for sample in family.samples:
        labels = ",".join(f'{key}="{value.translate(_ESCAPES)}"' for key, value in sample.labels)
        yield f"{family.name}{suffix}{f'{{{labels}}}' if labels else ''} {_number(sample.value)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
