"""`layerfs prune`: what nobody uses any more."""

from __future__ import annotations

import click

from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.units import short, size
from layerfs.commands.frame.verb import verb


@verb("prune", examples=["layerfs prune", "layerfs prune --force"])
@click.option("--force", is_flag=True, help="Do it.")
def command(session: Session, *, force: bool) -> None:
    """Show what nobody uses, and remove it with --force.

    That is images without a name and without a clone, layers and blobs of no image, and leftovers of work that was
    interrupted. Clones and named images are never touched.
    """
    with session.opened() as store:
        plan = store.plan_prune()
        if force:
            plan = store.prune(plan)
    items: list[Json] = [{"kind": item.kind, "name": item.name, "size": item.size} for item in plan.items]
    rows = [(short(item.name) if ":" in item.name else item.name, item.kind, size(item.size)) for item in plan.items]
    document: dict[str, Json] = {"done": force, "size": plan.size, "items": items}
    if rows or session.json:
        session.show_table(document, ("NAME", "KIND", "SIZE"), rows, right=("SIZE",))
    session.say(_summary(len(rows), plan.size, done=force))


def _summary(count: int, total: int, *, done: bool) -> str:
    if not count:
        return "nothing to remove"
    if done:
        return f"removed {count}, {size(total)}"
    return f"would remove {count}, {size(total)}; do it with `layerfs prune --force`"
