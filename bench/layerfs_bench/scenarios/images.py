"""The images that scenarios work on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from layerfs_bench.inputs import ImageSpec, Item, Layer

NAMES_PER_LAYER = 24
"""Names that each layer of a stack brings: a third of them for each position in which it may lie."""
LISTED, WALKED_DIRECTORIES, WALKED_FILES = 128, 8, 8
_SMALL = 64
_TOTAL, _MOST_FILES = 64 << 20, 16


def stack(depth: int) -> ImageSpec:
    """Return an image of ``depth`` layers that all have a part in the directories ``names``, ``list`` and ``tree``.

    ``names`` holds `NAMES_PER_LAYER` files of each layer; ``list`` and the tree below ``tree`` hold as many files at
    every depth, and each layer brings one of them anew.
    """
    return ImageSpec(f"stack-{depth}", lambda: [_stack_layer(number) for number in range(depth)])


def name_in(layer: int, number: int) -> str:
    """Return the name of a file in the directory ``names`` that a layer of `stack` brings, counted from the lowest."""
    return f"n{layer}-{number}"


def _stack_layer(number: int) -> Layer:
    directories = [Item("names"), Item("list"), Item("tree")]
    names = [Item(f"names/{name_in(number, one)}", _SMALL) for one in range(NAMES_PER_LAYER)]
    if number == 0:
        return (*directories, *names, *_listed(), *_walked())
    anew = (number * 7) % WALKED_DIRECTORIES
    listed = Item(f"list/f{number % LISTED}", _SMALL)
    return (*directories, *names, listed, Item(f"tree/d{anew}"), Item(f"tree/d{anew}/f{number % WALKED_FILES}", _SMALL))


def _listed() -> Iterator[Item]:
    return (Item(f"list/f{number}", _SMALL) for number in range(LISTED))


def _walked() -> Iterator[Item]:
    for directory in range(WALKED_DIRECTORIES):
        yield Item(f"tree/d{directory}")
        yield from (Item(f"tree/d{directory}/f{number}", _SMALL) for number in range(WALKED_FILES))


def files_of(size: int) -> tuple[str, ...]:
    """Return the names of the files in the image `files`: up to 16, together 64 MiB at the most, but one at least."""
    return tuple(f"data/f{number}" for number in range(max(1, min(_MOST_FILES, _TOTAL // max(1, size)))))


def files(size: int) -> ImageSpec:
    """Return an image of one layer with `files_of`, each of ``size`` bytes."""
    return ImageSpec(f"files-{size}", lambda: [(Item("data"), *(Item(name, size) for name in files_of(size)))])


def small_files(count: int) -> ImageSpec:
    """Return an image of one layer with ``count`` files of 4 KiB in the directory ``small``."""
    return ImageSpec(f"small-{count}", lambda: [(Item("small"), *(Item(f"small/f{n}", 4096) for n in range(count)))])


def tree_of(count: int) -> ImageSpec:
    """Return an image of one layer with ``count`` files of 1 KiB in directories of 32 below ``src``."""
    return ImageSpec(f"tree-{count}", lambda: [tuple(_tree_items(count))])


def _tree_items(count: int) -> Iterator[Item]:
    yield Item("src")
    for number in range(count):
        if number % 32 == 0:
            yield Item(f"src/d{number // 32}")
        yield Item(f"src/d{number // 32}/f{number}", 1024)


def contents(name: str, items: Sequence[Item]) -> ImageSpec:
    """Return an image of one layer with these items."""
    return ImageSpec(name, lambda: [tuple(items)])
