"""`layerfs image tree`: which images share which layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.text import printable
from layerfs.commands.frame.units import short, size
from layerfs.commands.frame.verb import verb

if TYPE_CHECKING:
    from layerfs.images import Image


@dataclass(slots=True)
class Node:
    """A layer in its place: its ChainID, the size of its blob in bytes, what ends in it and what stands on it."""

    id: str
    parent: str
    size: int
    images: list[str] = field(default_factory=list[str])
    children: list[Node] = field(default_factory=list["Node"])


@verb("tree", examples=["layerfs image tree"])
def command(session: Session) -> None:
    """Show the layers as a tree, and the images that end in each.

    A layer stands once, below the images that share it; what stands on one layer only follows it without a branch.
    """
    with session.opened() as store:
        nodes = grow(store.images())
    document: dict[str, Json] = {
        "layers": [
            {"id": node.id, "parent": node.parent, "size": node.size, "images": list(node.images)}
            for node in nodes.values()
        ]
    }
    roots = [node for node in nodes.values() if not node.parent]
    session.show(document, lambda: "\n".join(draw(roots)))


def grow(images: Iterable[Image]) -> dict[str, Node]:
    """Return the layers of all images by ChainID, parents before children."""
    nodes: dict[str, Node] = {}
    for image in images:
        parent = ""
        for chain_id, layer in zip(map(str, image.config.chain_ids), image.manifest.layers, strict=True):
            if chain_id not in nodes:
                nodes[chain_id] = Node(chain_id, parent, layer.size)
                if parent:
                    nodes[parent].children.append(nodes[chain_id])
            parent = chain_id
        if parent:
            nodes[parent].images += image.names or [short(image.digest)]
    return nodes


def draw(roots: Iterable[Node]) -> Iterator[str]:
    """Yield the lines of the tree; an only child stands straight below its parent, so deep images stay narrow."""
    waiting = [(root, "", "") for root in reversed(list(roots))]  # node, prefix of its line, prefix below it
    while waiting:
        node, first, rest = waiting.pop()
        names = " ".join(map(printable, node.images))
        yield f"{first}{short(node.id)}  {size(node.size)}  {names}".rstrip()
        if len(node.children) == 1:
            waiting.append((node.children[0], rest, rest))
            continue
        for child in reversed(node.children):
            last = child is node.children[-1]
            waiting.append((child, f"{rest}{'└─ ' if last else '├─ '}", f"{rest}{'   ' if last else '│  '}"))
