"""What `layerfs bench compare --fail` asks for: "median>10%", and which cells cross it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from types import MappingProxyType

from layerfs.errors import InvalidArgument
from layerfs_bench.comparison import Change, Comparison, Verdict
from layerfs_bench.statistics import percentile

Figure = Callable[[Sequence[float]], float]

_FIGURES: Mapping[str, Figure] = MappingProxyType(
    {
        "median": median,
        "mean": fmean,
        "min": min,
        "p95": lambda samples: percentile(sorted(samples), 95),
        "p99": lambda samples: percentile(sorted(samples), 99),
    }
)
_FORM = re.compile(r"\s*([a-z0-9]+)\s*>\s*(\d+(?:\.\d+)?)\s*%\s*")


@dataclass(frozen=True, slots=True)
class Threshold:
    """A figure of the samples, and the share by which B's may be above A's: 0.1 for 10 %."""

    figure: str
    share: float

    def __str__(self) -> str:
        """Return it as it was given."""
        return f"{self.figure}>{self.share * 100:g}%"

    def shift(self, change: Change) -> float:
        """Return by which share B's figure is above A's; both must have samples."""
        if change.before is None or change.after is None:
            raise ValueError("a shift takes samples of both sides")
        of = _FIGURES[self.figure]
        before, after = of(change.before.samples), of(change.after.samples)
        return after / before - 1 if before else 0.0

    def crossed(self, comparison: Comparison) -> tuple[Change, ...]:
        """Return the cells that are slower for certain, and by more than the share."""
        return tuple(one for one in comparison.of(Verdict.SLOWER) if self.shift(one) > self.share)

    def unproved(self, comparison: Comparison) -> tuple[Change, ...]:
        """Return the cells whose figure is above the share, though noise alone may be the reason."""
        both = (one for one in comparison.changes if one.ratio is not None and one.verdict is not Verdict.SLOWER)
        return tuple(one for one in both if self.shift(one) > self.share)


def parse(text: str) -> Threshold:
    """Read "median>10%"; raise `InvalidArgument` for anything else."""
    match = _FORM.fullmatch(text)
    if match is None or match[1] not in _FIGURES:
        names = ", ".join(_FIGURES)
        raise InvalidArgument(
            f"{text!r} is no threshold", hint=f"write it as median>10%; instead of median also one of {names}"
        )
    return Threshold(match[1], float(match[2]) / 100)
