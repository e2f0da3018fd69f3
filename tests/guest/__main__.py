"""``python -m tests.guest``: build what guests boot, or run a command in one.

python -m tests.guest build
python -m tests.guest run [--machine qemu|uml] [--limit SECONDS] [--memory MIB] [--processors N]
                             [--out DIRECTORY] [--live FILE] [--] COMMAND...

The exit status is the command's; 125 is a guest that died or reached its time limit, 126 one that cannot be had here.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.guest import machine
from tests.guest.image import image, say
from tests.support.debian import Unavailable


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.guest", allow_abbrev=False)
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("build", help="build what the guest boots, unless the cache holds it")
    run = commands.add_parser("run", help="run a command in the guest, in this directory")
    defaults = machine.Machine()
    kinds = tuple(machine.Kind)
    run.add_argument("--machine", type=machine.Kind, choices=kinds, default=defaults.kind, help="uml: no ZFS, but fast")
    run.add_argument("--limit", type=float, default=defaults.limit, help="seconds")
    run.add_argument("--memory", type=int, default=defaults.memory, help="MiB")
    run.add_argument("--processors", type=int, default=defaults.processors)
    run.add_argument("--out", type=Path, help="where the files go that the command leaves in /out")
    run.add_argument("--live", type=Path, help=f"where that goes at once which the command writes to ${machine.LIVE}")
    run.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    try:
        if arguments.what == "build":
            image()
            return 0
        words = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
        machine_ = machine.Machine(arguments.machine, arguments.memory, arguments.processors, arguments.limit)
        return machine.run(words, machine=machine_, out=arguments.out, live=arguments.live)
    except Unavailable as error:
        say(str(error))
        return 126


def _stop(number: int, _: object) -> None:
    """End as by Ctrl-C, the machine and what is left of it with us."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
