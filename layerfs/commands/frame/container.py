"""The options of verbs that make a container of a clone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from layerfs.commands.frame.units import parse_size

if TYPE_CHECKING:
    from layerfs.runtime.container import Container

Decorator = Callable[[Callable[..., object]], Callable[..., object]]


class _Size(click.ParamType[int]):
    """A size in bytes, with a unit or without."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401  click's
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


_OPTIONS = (
    click.option("-e", "--env", metavar="NAME=VALUE", multiple=True, help="A variable; may be repeated."),
    click.option("-w", "--workdir", metavar="DIR", help="Where the command starts."),
    click.option("-u", "--user", metavar="USER[:GROUP]", help="Who runs it: names of the image, or numbers."),
    click.option("--entrypoint", metavar="WORD", help="In place of the image's entrypoint and command."),
    click.option("--hostname", metavar="NAME", default="layerfs", help="What the container is called to itself."),
    click.option("--volume", "volumes", metavar="SOURCE:TARGET[:ro]", multiple=True, help="Show a host's path."),
    click.option("--memory", metavar="SIZE", type=_Size(), help="Most memory, such as 512m; who takes more is killed."),
    click.option("--cpus", metavar="NUMBER", type=float, help="Most processors, such as 1.5."),
    click.option("--pids", metavar="NUMBER", type=int, help="Most processes and threads."),
    click.option(
        "--net", type=click.Choice(["none", "host"]), default="none", help="No network [default], or the host's."
    ),
    click.option("--read-only", is_flag=True, help="Let nothing in the root be changed."),
    click.option("--cap-add", metavar="NAME", multiple=True, help="A capability more, such as NET_ADMIN, or ALL."),
    click.option("--cap-drop", metavar="NAME", multiple=True, help="A capability less, or ALL."),
    click.option("--unconfined", is_flag=True, help="Without the filter of system calls."),
    click.option("-t/-T", "--tty/--no-tty", "tty", default=None, help="With a terminal of its own, or not."),
)


def container_options() -> Decorator:
    """Declare the options that say how a container differs from its image; `wanted` reads them."""

    def declare(function: Callable[..., object]) -> Callable[..., object]:
        for option in reversed(_OPTIONS):
            function = option(function)
        return function

    return declare


def wanted(words: tuple[str, ...], given: dict[str, Any], *, terminal: bool) -> Container:
    """Return what the options and the words of the command ask for; raise `InvalidArgument`."""
    from layerfs.runtime.container import Bind, Container, Limits, Network  # noqa: PLC0415  only when a verb runs

    return Container(
        command=words,
        entrypoint=None if given["entrypoint"] is None else tuple(filter(None, (given["entrypoint"],))),
        env=given["env"],
        workdir=given["workdir"],
        user=given["user"],
        hostname=given["hostname"],
        terminal=terminal,
        network=Network(given["net"]),
        read_only=given["read_only"],
        limits=Limits(given["memory"], given["cpus"], given["pids"]),
        binds=tuple(map(Bind.parse, given["volumes"])),
        add_capabilities=given["cap_add"],
        drop_capabilities=given["cap_drop"],
        confined=not given["unconfined"],
    )
