"""`layerfs bench`: the group; without a verb it runs."""

from __future__ import annotations

import click

from layerfs.commands.frame.verb import ExampleGroup

_DEFAULT = "run"
_HELP = ("-h", "--help")


class _RunsByDefault(ExampleGroup):
    """A group in which what begins with an option, or is nothing at all, is meant for `run`."""

    examples = (
        "layerfs bench",
        "layerfs bench run --profile standard --budget 30m",
        "layerfs bench report bench.json",
    )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the verb in where there is none."""
        if not args or (args[0].startswith("-") and args[0] not in _HELP):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


@click.group("bench", cls=_RunsByDefault, prefix="bench.")
def command() -> None:
    """Measure what each storage driver costs.

    That is on this machine, for lookups, first writes, clones, reads, builds and whole programs. Without a verb
    it runs the profile "quick", which takes a minute, and shows what it found.
    """
