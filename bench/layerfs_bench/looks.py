"""How a cell looks in every plot: colour tells the driver, the marker its file system, the dashes how it writes.

Three marks for three things, so that nothing hangs on colour alone (https://www.w3.org/TR/WCAG21/#use-of-color).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from layerfs.contract import WritePolicy
from layerfs_bench.results import Cell

COLOURS = 8
"""How many there are; the first is that of plain directories."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
"""In matplotlib's letters: circle, square, diamond, triangles, plus and cross."""
_DASHES = {WritePolicy.COPY_ON_WRITE: "solid", WritePolicy.REDIRECT_ON_WRITE: "dashed"}
_OTHER_DASHES = "dotted"


@dataclass(frozen=True, slots=True)
class Look:
    """A cell's place in the legend, colour (below `COLOURS`), marker (below ``len(MARKERS)``) and dashes."""

    number: int
    colour: int
    marker: int
    dashes: str


def looks(cells: Sequence[Cell]) -> dict[str, Look]:
    """Give each cell a look of its own, by its name, as long as there are any left."""
    families = list(dict.fromkeys((cell.driver, cell.options) for cell in cells if not cell.is_baseline))
    places = list(dict.fromkeys(cell.file_system for cell in cells))
    found: dict[str, Look] = {}
    taken: set[tuple[int, int, str]] = set()
    for number, cell in enumerate(cells):
        colour = 0 if cell.is_baseline else 1 + families.index((cell.driver, cell.options)) % (COLOURS - 1)
        wanted = colour, places.index(cell.file_system) % len(MARKERS), _dashes(cell)
        look = wanted if wanted not in taken else _free(wanted, taken)
        taken.add(look)
        found[cell.name] = Look(number, *look)
    return found


def _dashes(cell: Cell) -> str:
    return _DASHES.get(cell.write_policy, _OTHER_DASHES) if cell.write_policy else _OTHER_DASHES


def _free(wanted: tuple[int, int, str], taken: set[tuple[int, int, str]]) -> tuple[int, int, str]:
    """Return the next look of the same colour, or the wanted one where none is left."""
    colour, marker, dashes = wanted
    others = product(range(len(MARKERS)), (dashes, "solid", "dashed", _OTHER_DASHES))
    turned = (((marker + turn) % len(MARKERS), other) for turn, other in others)
    return next(((colour, *look) for look in turned if (colour, *look) not in taken), wanted)
