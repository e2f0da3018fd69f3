"""The options `--size` and `--inodes`, and how a quota is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from layerfs.commands.frame.units import parse_size, size

if TYPE_CHECKING:
    from layerfs.contract import Quota

_THOUSAND, _MILLION = 1000, 1000_000


def quota_options(function: Callable[..., object]) -> Callable[..., object]:
    """Declare both options; they are None where they are not given."""
    inodes = click.option(
        "--inodes", metavar="N", callback=_inodes, help="Files of every kind that may be made in it, such as 10k."
    )
    limit = click.option("--size", metavar="SIZE", callback=_size, help="Bytes that may be written to it, such as 1G.")
    return limit(inodes(function))


def chosen(size: int | None, inodes: int | None) -> Quota:
    """Return the quota of the two options."""
    from layerfs.contract import Quota  # noqa: PLC0415  the core is loaded by what needs it

    return Quota(size, inodes)


def written(quota: Quota) -> str:
    """Write a quota for people: "1.0 GiB, 10000 inodes"; "" for none."""
    words = [] if quota.size is None else [size(quota.size)]
    return ", ".join(words if quota.inodes is None else [*words, f"{quota.inodes} inodes"])


def _size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else _positive(parse_size, value)


def _inodes(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else _positive(_count, value)


def _positive(read: Callable[[str], int], value: str) -> int:
    try:
        number = read(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if number <= 0:
        raise click.BadParameter(f"{value!r} would leave no room at all.")
    return number


def _count(text: str) -> int:
    """Read "10k", "2M" or "500": the units are powers of 1000, for nobody counts files by 1024."""
    factor = {"k": _THOUSAND, "m": _MILLION}.get(text[-1:].lower())
    digits = text[:-1] if factor else text
    if not digits.isdecimal():
        raise ValueError(f"{text!r} is no number of files: write one such as 500, 10k or 2M")
    return int(digits) * (factor or 1)
