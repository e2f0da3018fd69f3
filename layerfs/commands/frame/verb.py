"""How a verb is declared: a click command that also takes the global options, and whose help ends in examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from layerfs.commands.frame.lazy import LazyGroup
from layerfs.commands.frame.session import OutputClosedError, Session
from layerfs.errors import LayerfsError, os_error

Function = Callable[..., object]


class GlobalOption(click.Option):
    """An option that stands before or after the verb, and in the help of `layerfs` only."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return its line of help, or None in the help of a verb."""
        return None if ctx.parent else super().get_help_record(ctx)


def global_options(*, root: bool) -> list[click.Parameter]:
    """Make the global options; those of the root command also read the environment."""
    return [
        _option(
            "--store",
            type=click.Path(file_okay=False),
            metavar="DIR",
            envvar="LAYERFS_STORE" if root else None,
            show_envvar=True,
            help="The store to work on.",
        ),
        _option(
            "--backend",
            metavar="NAME",
            shell_complete=_complete_backend,
            help="The storage driver, or auto: the best one that works here.",
        ),
        _option("--option", metavar="KEY=VALUE", multiple=True, help="An option of the driver; may be repeated."),
        _option("--json", is_flag=True, help="Print one JSON document; everything else goes to standard error."),
        _option("-q", "--quiet", is_flag=True, help="Print names only, and no progress."),
        _option("-v", "--verbose", count=True, help="Print the causes of an error; with -vv tracebacks as well."),
    ]


class Verb(click.Command):
    """A leaf of the command. ``examples`` are lines of shell that show its use."""

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **settings: Any) -> None:  # noqa: ANN401  click's own
        super().__init__(*arguments, **settings)
        self.examples = examples
        self.params = [*self.params, *global_options(root=False)]

    def invoke(self, ctx: click.Context) -> object:
        """Run it; an ``OSError`` that nobody translated becomes an error that names the verb."""
        try:
            return super().invoke(ctx)
        except (LayerfsError, OutputClosedError):
            raise
        except OSError as error:
            raise os_error(f"run `{ctx.command_path}`", error) from error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write its own options, and the names of the global ones."""
        super().format_options(ctx, formatter)
        names = [min(param.opts, key=len) for param in self.params if isinstance(param, GlobalOption)]
        with formatter.section("Global options"):
            formatter.write_text(f"{' '.join(names)}: see `layerfs --help`")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's signature
        """Write the examples."""
        write_examples(formatter, self.examples)


def verb(
    name: str, *, examples: Sequence[str], settings: Mapping[str, Any] | None = None
) -> Callable[[Function], Verb]:
    """Declare a function as a verb: its docstring is the help, and its first argument the `Session`.

    ``settings`` are click's context settings.
    """
    made = click.command(name, cls=Verb, examples=examples, context_settings=dict(settings or {}))
    return lambda function: made(click.pass_obj(function))


def group(name: str, *, examples: Sequence[str]) -> Callable[[Function], LazyGroup]:
    """Declare a function as a group of verbs: its docstring is the help."""

    def declare(function: Function) -> LazyGroup:
        made = click.group(name, cls=ExampleGroup, prefix=f"{name}.")(function)
        made.examples = examples
        return made

    return declare


class ExampleGroup(LazyGroup):
    """A group of verbs whose help ends in examples."""

    examples: Sequence[str] = ()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's signature
        """Write the examples."""
        write_examples(formatter, self.examples)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write lines of shell as they are, never wrapped."""
    if examples:
        with formatter.section("Example" if len(examples) == 1 else "Examples"):
            for example in examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def _option(*names: str, **settings: Any) -> GlobalOption:  # noqa: ANN401  click's own settings, handed through
    return GlobalOption(names, expose_value=False, callback=_store_in_session, **settings)


def _store_in_session(ctx: click.Context, param: click.Parameter, value: Any) -> None:  # noqa: ANN401  any option's
    """Keep what was given; what was not given after the verb must not undo what was given before it."""
    session = ctx.ensure_object(Session)
    match param.name:
        case "option":
            session.options.update(key_value(ctx, param, value))
        case "verbose":
            session.verbosity += value
        case str(name) if value:
            setattr(session, name, value)


def key_value(ctx: click.Context, param: click.Parameter, texts: Sequence[str]) -> dict[str, str]:
    """Read repeated KEY=VALUE, as the callback of an option."""
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE.", ctx, param)
        pairs[key] = value
    return pairs


def _complete_backend(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001  click's signature
    from layerfs import drivers  # noqa: PLC0415  the core is loaded by what needs it

    return [name for name in ("auto", *drivers.names()) if name.startswith(incomplete)]
