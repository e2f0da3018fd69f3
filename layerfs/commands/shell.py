"""`layerfs shell`: inside a clone."""

from __future__ import annotations

import os

import click

from layerfs.commands.frame.names import clone_argument
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb
from layerfs.kernel import userns

_ANY_SHELL = ("/bin/sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash -l; exec sh -l")
"""bash where the clone has it, else its sh."""
_HANDED_IN = ("TERM", "COLORTERM", "LANG", "LC_ALL", "NO_COLOR", "http_proxy", "https_proxy", "no_proxy")
"""Variables of the caller that make sense inside."""


@verb(
    "shell",
    examples=["layerfs shell web", "layerfs shell web -- apt-get install -y nginx"],
    settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
)
@clone_argument()
@click.argument("words", metavar="[CMD]...", nargs=-1, type=click.UNPROCESSED)
@click.option("-e", "--env", metavar="NAME=VALUE", multiple=True, help="A variable for it; may be repeated.")
def command(session: Session, name: str, words: tuple[str, ...], env: tuple[str, ...]) -> int:
    """Run a shell or a command in a clone.

    What is mounted for it goes when it ends. The exit status is that of CMD, or 128 and the number of the signal that
    ended it. An ordinary user is root inside, by a user namespace.
    """
    if session.json:
        raise click.UsageError("a shell has the terminal to itself: it has no document for --json.")
    if words[:1] == ("--",):  # click leaves it, because options of CMD are not to be read
        words = words[1:]
    if os.geteuid() != 0:
        userns.can_enter()
    with session.opened() as store:
        clone = store.get_clone(name)
        variables = _environment(store.image(clone.image).config.config.env, env)
        return clone.run(words or _ANY_SHELL, environment=variables)


def _environment(image: tuple[str, ...], given: tuple[str, ...]) -> dict[str, str]:
    """Return the variables of the process: usual ones, the caller's terminal, the image's, and those of ``--env``."""
    found = {"HOME": "/root", "USER": "root"}
    found |= {name: os.environ[name] for name in _HANDED_IN if name in os.environ}
    for text in (*image, *given):
        name, _, value = text.partition("=")
        found[name] = value
    return found
