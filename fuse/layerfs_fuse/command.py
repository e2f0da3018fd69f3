"""``mount.fuse.layerfs``: mount a union as mount(8) asks for it, and as the ``mount_program`` of container engines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from layerfs.errors import InvalidArgument, LayerfsError
from layerfs_fuse import options, stack
from layerfs_fuse.mounting import SUBTYPE

_EPILOGUE = """\
OPTIONS are those of fuse-overlayfs, separated by commas:
  lowerdir=A:B,upperdir=U,workdir=W   the directories, the uppermost lower first; without U and W it is read-only
  index=FILE                          where the merged view of the lower directories is kept
  aufs                                the lower directories are branches of AUFS
  write=redirect                      store changed blocks of lower files, and do not copy these
  ro, volatile, userxattr, allow_other, noacl, nopassthrough, fusepy, uidmapping=, gidmapping=, squash_to_uid=, log=FILE
docs/reference/union.md tells all. The exit status is that of mount(8).
"""
_USAGE, _FAILURE = 1, 32
"""Exit statuses of mount(8): a wrong call, a mount that failed."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(_USAGE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Be the program; return its exit status."""
    parser = _arguments()
    given = parser.parse_intermixed_args(arguments)
    if not 1 <= len(given.places) <= 2:  # noqa: PLR2004  a source, which is a name only, and a directory
        parser.error("name the directory to mount at")
    *source, target = given.places
    words = [word for text in given.options for word in options.split(text)]
    try:
        _mount(_source(source), words, Path(target), foreground=given.foreground)
    except LayerfsError as error:
        hint = f"\n{parser.prog}: hint: {error.hint}" if error.hint else ""
        sys.stderr.write(f"{parser.prog}: {error.message}{hint}\n")
        return _USAGE if isinstance(error, InvalidArgument) else _FAILURE
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mount.fuse.layerfs",
        description="Mount a union of directories, served by a process of its own.",
        epilog=_EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "places", metavar="[SOURCE] DIRECTORY", nargs="*", help="SOURCE is a name to show as the device"
    )
    parser.add_argument("-o", metavar="OPTIONS", dest="options", action="append", default=[], help="see below")
    parser.add_argument("-f", dest="foreground", action="store_true", help="serve in this process, until unmounted")
    parser.add_argument("-V", "--version", action="version", version=f"layerfs {version('layerfs')}")
    for ignored in ("-n", "-s", "-v", "-d"):  # mount(8) and libfuse have them
        parser.add_argument(ignored, dest="ignored", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-t", dest="type", help=argparse.SUPPRESS)
    return parser


def _source(given: Sequence[str]) -> str:
    return given[0] if given and given[0] not in {"", "none"} else SUBTYPE


def _mount(source: str, words: Sequence[str], target: Path, *, foreground: bool) -> None:
    if foreground:
        stack.serve(source, options.parse(words), target)
        return
    stack.perform(source, words, target)


if __name__ == "__main__":
    sys.exit(main())
