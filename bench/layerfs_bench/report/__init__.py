"""The report: one HTML file that needs nothing else, or CSV for a spreadsheet; matplotlib is loaded here alone."""

from __future__ import annotations

from pathlib import Path

from layerfs.errors import Unsupported, os_error
from layerfs_bench.analysis import Analysis, analyse
from layerfs_bench.results import Results


def write(results: Results, path: Path) -> None:
    """Write the report of a result; raise `Unsupported` where matplotlib is not installed."""
    page = html(analyse(results))
    save(page, path)


def write_csv(results: Results, path: Path) -> None:
    """Write the figures of a result as comma-separated values."""
    from layerfs_bench.report import table  # noqa: PLC0415  pages do not need it

    save(table.text(analyse(results)), path)


def html(analysis: Analysis) -> str:
    """Return the report as the text of a page."""
    try:
        from layerfs_bench.report.page import page  # noqa: PLC0415  it loads matplotlib: half a second
    except ModuleNotFoundError as error:
        raise Unsupported(f"the report needs {error.name}", hint="pip install 'layerfs[bench]'") from error
    return page(analysis)


def save(text: str, path: Path) -> None:
    """Write a file, in UTF-8."""
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise os_error(f"write {path}", error) from error
