"""Groups whose verbs are imported when they are run, not when they are listed."""

from __future__ import annotations

from importlib import import_module

import click
from click.shell_completion import CompletionItem

from layerfs.commands import BUILTINS, Builtin
from layerfs.commands.frame import plugins


class LazyGroup(click.Group):
    """A group that knows names and short helps from the table, and the verbs themselves by import.

    ``prefix`` is what its verbs' full names start with: "" for the command itself, "image." for `layerfs image`.
    """

    def __init__(self, name: str | None = None, *, prefix: str = "", **settings: object) -> None:
        super().__init__(name, **settings)  # type: ignore[arg-type]  # click's own settings, handed through
        self.prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the built-in verbs in the order of the table, then those of other packages."""
        builtins = self._builtins()
        others = [name for name in (*super().list_commands(ctx), *plugins.find(self.prefix)) if name not in builtins]
        return [*builtins, *dict.fromkeys(others)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a verb; a built-in name is never taken over by another package."""
        if builtin := self._builtins().get(cmd_name):
            module, _, attribute = builtin.target.partition(":")
            return _checked(cmd_name, getattr(import_module(module), attribute))
        if (added := super().get_command(ctx, cmd_name)) is not None:
            return added
        plugin = plugins.find(self.prefix).get(cmd_name)
        return None if plugin is None else _checked(cmd_name, plugin.load())

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb that the first argument names; a usage error proposes similar names."""
        name = click.utils.make_str(args[0])
        command = self.get_command(ctx, name)
        if command is None and not ctx.resilient_parsing:
            if name.startswith("-"):  # an option between a group and its verb: let click say so
                return super().resolve_command(ctx, args)
            ctx.fail(f"no such command {name!r}.{self._did_you_mean(ctx, name)}")
        return name if command else None, command, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs with their short helps, in sections; only other packages' verbs are loaded for it."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, builtin in self._builtins().items():
            title = "Commands" if self.prefix else builtin.section
            sections.setdefault(title, []).append((name, builtin.help))
        for name in self.list_commands(ctx)[len(self._builtins()) :]:
            sections.setdefault("Other commands", []).append((name, self._short_help(ctx, name)))
        width = max(len(name) for rows in sections.values() for name, _ in rows)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the name of a verb without importing any of ours; options as click does."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        helps = {name: builtin.help for name, builtin in self._builtins().items()}
        names = (name for name in self.list_commands(ctx) if name.startswith(incomplete))
        return [CompletionItem(name, help=helps.get(name) or self._short_help(ctx, name)) for name in names]

    def _builtins(self) -> dict[str, Builtin]:
        below = (one for one in BUILTINS if one.name.startswith(self.prefix))
        return {one.name[len(self.prefix) :]: one for one in below if "." not in one.name[len(self.prefix) :]}

    def _short_help(self, ctx: click.Context, name: str) -> str:
        """Return the short help of another package's verb; one that cannot be loaded must not end the list."""
        try:
            command = self.get_command(ctx, name)
        except Exception as error:  # noqa: BLE001  it is somebody else's module: anything may come out of its import
            return f"(cannot be loaded: {error})"
        return command.get_short_help_str(limit=100) if command else ""

    def _did_you_mean(self, ctx: click.Context, name: str) -> str:
        from difflib import get_close_matches  # noqa: PLC0415  needed by the mistaken only

        near = get_close_matches(name, self.list_commands(ctx), n=1)
        return f" Did you mean {near[0]!r}?" if near else ""


def _checked(name: str, loaded: object) -> click.Command:
    if not isinstance(loaded, click.Command):
        raise TypeError(f"the entry point of the sub-command {name!r} is no click command but {loaded!r}")
    return loaded
