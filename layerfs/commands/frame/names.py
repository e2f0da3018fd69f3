"""Arguments that name clones and images, completed from the store when the user presses the tab key."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from layerfs.commands.frame.session import Session
from layerfs.errors import LayerfsError

if TYPE_CHECKING:
    from layerfs.store import Store

Decorator = Callable[[Callable[..., object]], Callable[..., object]]
Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def _from_store(names: Callable[[Store], Iterable[str]]) -> Completer:
    """Make a completer of a function that lists names; a store that cannot be opened completes nothing."""

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        session = ctx.find_object(Session) or Session()
        try:
            with session.opened() as store:
                return sorted({name for name in names(store) if name.startswith(incomplete)})
        except (LayerfsError, OSError):  # a tab key must not print an error into the line that is being typed
            return []

    return complete


def _clones(store: Store) -> Iterable[str]:
    return (clone.name for clone in store.clones())


def _images(store: Store) -> Iterable[str]:
    return (name for image in store.images() for name in image.names)


complete_clone = _from_store(_clones)
complete_image = _from_store(_images)
complete_either = _from_store(lambda store: [*_clones(store), *_images(store)])


def clone_argument(name: str = "name", **settings: Any) -> Decorator:  # noqa: ANN401  click's own settings
    """Declare an argument that names a clone: its name or any unique prefix of it."""
    return click.argument(name, shell_complete=complete_clone, **settings)


def image_argument(name: str = "image", **settings: Any) -> Decorator:  # noqa: ANN401  click's own settings
    """Declare an argument that names an image: a name, or any unique prefix of its digest."""
    return click.argument(name, shell_complete=complete_image, **settings)


def new_name_argument(name: str, **settings: Any) -> Decorator:  # noqa: ANN401  click's own settings
    """Declare an argument that may be left out, and is None then; an empty one (`"$unset"`) is a mistake."""
    return click.argument(name, required=False, callback=_not_empty, **settings)


def _not_empty(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value == "":
        raise click.BadParameter("it is empty.", ctx, param)
    return value
