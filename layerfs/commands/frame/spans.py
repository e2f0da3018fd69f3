"""Spans of time as the type of an option."""

from __future__ import annotations

from datetime import timedelta

import click

from layerfs.commands.frame.units import parse_time


def span(text: str) -> timedelta:
    """Read a span of time (`layerfs.commands.frame.units.parse_time`) as the type of an option."""
    try:
        return timedelta(seconds=parse_time(text))
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{error}.") from error
