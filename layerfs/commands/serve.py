"""`layerfs serve`: the snapshotter of containerd."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb
from layerfs.errors import PermissionDenied
from layerfs.serve import units

if TYPE_CHECKING:
    from layerfs.serve.server import Server


@verb(
    "serve",
    examples=[
        "layerfs serve",
        "layerfs --store /srv/containers --backend btrfs serve --socket /run/layerfs/layerfs.sock",
        "layerfs serve --print containerd >> /etc/containerd/config.toml",
        "layerfs serve --print service > /etc/systemd/system/layerfs.service",
    ],
)
@click.option(
    "--socket",
    "place",
    type=click.Path(dir_okay=False, path_type=Path),
    default=units.SOCKET,
    show_default=True,
    help="Where to listen; systemd's socket comes first.",
)
@click.option(
    "--metrics",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep metrics in this file up to date, for node_exporter's textfile collector.",
)
@click.option(
    "--print",
    "wanted",
    type=click.Choice(["service", "socket", "containerd"]),
    help="Print a systemd unit, or what containerd's configuration needs, and do nothing.",
)
def command(session: Session, place: Path, metrics: Path | None, wanted: str | None) -> None:
    """Serve containerd's snapshots service on a unix socket, until SIGTERM.

    Images that containerd, Docker, nerdctl or Kubernetes unpack, and the containers that they run, are then snapshots
    of this store, beside its own images and clones. Running calls are finished at the end, and mounts stay: containers
    run on while the service is started anew.
    """
    place = place.absolute()
    metrics = metrics.absolute() if metrics else None
    if wanted:
        text = _unit(wanted, session, place, metrics)
        session.show({"file": text}, text.rstrip("\n"))
        return
    _serve(session, place, metrics)


def _serve(session: Session, place: Path, metrics: Path | None) -> None:
    from layerfs.serve import activation  # noqa: PLC0415  neither `layerfs --help` nor --print needs it
    from layerfs.serve.counting import CallCounter, kept_up  # noqa: PLC0415  as above
    from layerfs.serve.server import Server  # noqa: PLC0415  as above
    from layerfs.serve.service import Service  # noqa: PLC0415  as above

    with session.opened(create=True) as store:
        if session.entered:
            raise PermissionDenied(
                "an ordinary user cannot serve containerd from a user namespace that only this process is in",
                hint="run it where containerd runs: as root, or inside rootless containerd's own namespace",
            )
        counter = CallCounter()
        server = Server(counter.counted(Service(store.snapshotter).methods()))
        with ExitStack() as stack:
            listener = stack.enter_context(activation.listening(place))
            stack.enter_context(_stopped_by_signals(server))
            if metrics is not None:
                stack.enter_context(kept_up(metrics, lambda: (*store.metrics(), *counter.families())))
            session.say(f"serving {store.driver.name} snapshots of {store.path} at {listener.getsockname()}")
            activation.notify(f"READY=1\nSTATUS={store.driver.name} in {store.path}")
            server.run(listener)


@contextmanager
def _stopped_by_signals(server: Server) -> Iterator[None]:
    """Let the first SIGTERM, SIGINT or SIGHUP end the service cleanly, and a second one at once."""
    from layerfs.serve import activation  # noqa: PLC0415  as in `_serve`

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signature of a signal handler
        for one in numbers:
            signal.signal(one, signal.SIG_DFL)
        activation.notify("STOPPING=1")
        server.stop()

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _unit(wanted: str, session: Session, place: Path, metrics: Path | None) -> str:
    match wanted:
        case "service":
            return units.service(_command(session, place, metrics))
        case "socket":
            return units.socket(place)
        case _:
            return units.containerd(place)


def _command(session: Session, place: Path, metrics: Path | None) -> Sequence[str]:
    """Return this very call, with absolute paths."""
    program = os.path.abspath(sys.argv[0])
    words = [program, "--store", str(session.location())]
    if session.backend != "auto":
        words += ["--backend", session.backend]
    for key, value in session.options.items():
        words += ["--option", f"{key}={value}"]
    return [*words, "serve", "--socket", str(place), *(["--metrics", str(metrics)] if metrics else [])]
