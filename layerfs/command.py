"""The command `layerfs`: global options, and verbs that are imported when they run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from layerfs import privilege
from layerfs.commands.frame.failure import guarded, log_to_stderr
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import ExampleGroup, global_options

_EXAMPLES = (
    "layerfs image import debian.tar --name debian:12",
    "layerfs clone debian:12 web",
    "layerfs shell web -- sh -c 'echo hello > /etc/motd'",
    "layerfs diff web",
    "layerfs commit web debian:hello",
)


_COMPLETE = "_LAYERFS_COMPLETE"
"""The variable by which the script of `layerfs completion` asks for completions."""


class Layerfs(ExampleGroup):
    """The root of the command: every exception ends in words and an exit status here."""

    examples = _EXAMPLES

    def main(  # noqa: D102  click's own
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: FBT001, FBT002  click's signature
        **extra: Any,  # noqa: ANN401  settings of click's context, handed through
    ) -> Any:  # noqa: ANN401  click's signature
        words = list(sys.argv[1:] if args is None else args)
        session = extra.setdefault("obj", Session())
        if _COMPLETE in os.environ:
            from layerfs.commands.frame import bash  # noqa: PLC0415  only when the tab key is pressed

            bash.register()
        run = super().main
        status = guarded(
            session, words, lambda: run(words, prog_name, complete_var or _COMPLETE, standalone_mode=False, **extra)
        )
        if standalone_mode:
            sys.exit(status)
        return status


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001, FBT001  click's signature
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version  # noqa: PLC0415  20 ms that only this option needs

        click.echo(f"layerfs {version('layerfs')}")
        ctx.exit()


@click.command(cls=Layerfs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Build images from layers, and clone writable roots from images in about a millisecond."""
    session: Session = ctx.obj
    ctx.color = session.colour
    log_to_stderr(session)


cli.params = [*global_options(root=True), *cli.params]


def main() -> None:
    """Run the command as a process of its own; SIGTERM and SIGHUP end it as an error would, so that it tidies up."""
    privilege.forget_environment()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    cli(prog_name="layerfs")


def _end(number: int, frame: object) -> None:  # noqa: ARG001  the signature of a signal handler
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the tidying up
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
