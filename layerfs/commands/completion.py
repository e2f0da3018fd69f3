"""`layerfs completion`: the tab key."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb
from layerfs.errors import InvalidArgument

SHELLS = ("bash", "zsh", "fish")


@verb(
    "completion",
    examples=[
        'eval "$(layerfs completion bash)"    # in ~/.bashrc',
        'eval "$(layerfs completion zsh)"     # in ~/.zshrc',
        "layerfs completion fish > ~/.config/fish/completions/layerfs.fish",
    ],
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, session: Session, shell: str) -> None:
    """Print the script that completes commands and names in a shell.

    Names of clones and images are completed from the store.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise InvalidArgument(f"click has no completion for {shell}")
    completer = kind(ctx.find_root().command, {}, "layerfs", "_LAYERFS_COMPLETE")
    script = ShellComplete.source(completer)  # the class's own first runs bash to see its version
    session.show({"shell": shell, "script": script}, script.rstrip("\n"))
