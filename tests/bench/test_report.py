"""The page of a result: what it shows, in a browser; and that nothing in a result can be more than text in it."""

from __future__ import annotations

import csv
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from layerfs.command import cli
from layerfs_bench import document, report
from layerfs_bench.analysis import analyse
from layerfs_bench.catalogue import figures
from layerfs_bench.results import Cell, Key, LeftOut, Measurement, Outcome, Results
from tests.bench import samples
from tests.support import chromium

PLOTS = [
    "lookup-by-depth", "lookup-by-layer", "first-write", "write-amplification", "space-amplification", "lifecycle",
    "works", "distributions",
]  # fmt: skip

needs_chromium = pytest.mark.skipif(chromium.missing() is not None, reason=str(chromium.missing()))


@pytest.fixture(scope="module")
def page() -> str:
    """Give the page of a result that has everything."""
    return report.html(samples.analysed())


class Elements(HTMLParser):
    """Collect the elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)


# --- content ----------------------------------------------------------------------------------------------------------


def test_every_plot_has_its_sentence_and_its_table(page: str) -> None:
    analysis = samples.analysed()
    assert [figure.name for figure in figures(analysis)] == PLOTS
    for figure in figures(analysis):
        assert html.escape(figure.sentence) in page
        start = page.index(f'<section aria-labelledby="{figure.name}">')
        section = page[start : page.index("</section>", start)]
        assert section.count("<svg xmlns:xlink") == 1
        assert section.count('role="img" aria-label="Plot: ') == 1
        assert section.count("<details><summary>The figures as a table") == 1
        assert section.count("<tr>") == 1 + len(figure.table.rows)
        for row in figure.table.rows:
            assert all(html.escape(text) in section for text in row)


def test_sentences_come_from_the_figures() -> None:
    """Other figures make other sentences: what is said of one driver is said of whichever behaves so."""
    before = {one.name: one.sentence for one in figures(samples.analysed())}
    steep = samples.results(
        slowed=lambda key, cell: (
            key.parameters.depth or 1.0 if cell.name == "btrfs" and key.scenario == "lookup.stat" else 1
        )
    )
    flat = samples.results(slowed=lambda key, cell: 0.001 if cell.driver == "overlay2" and key.metric == "first" else 1)
    for changed, name in ((steep, "lookup-by-depth"), (flat, "first-write")):
        after = {one.name: one.sentence for one in figures(analyse(changed))}
        assert after[name] != before[name]
    assert re.search(r"grows from 1 layer to 128 layers on overlay2-\w+ 1\d\.", before["lookup-by-depth"])
    sentence = {one.name: one.sentence for one in figures(analyse(steep))}["lookup-by-depth"]
    assert re.search(r"grows from 1 layer to 128 layers on btrfs 1[23]\d×", sentence)


def test_the_crossover_is_marked_where_the_lines_cross(page: str) -> None:
    figure = {one.name: one for one in figures(samples.analysed())}["write-amplification"]
    mark, other = figure.panels[0].marks  # of btrfs, and of the union that redirects
    assert mark.x == pytest.approx(other.x)
    # The copy costs 1.02 times the file and 8 KiB, redirecting 300 KB: they meet at 280 KiB; lines are straight between
    # 64 KiB and 1 MiB, which were measured.
    assert 200 * 1024 < mark.x < 360 * 1024
    assert html.escape(mark.text) in page


def test_what_is_missing_and_doubtful_is_told(page: str) -> None:
    assert "it did not end within 30 s" in page
    assert "zfs: the kernel has no ZFS (install zfs-dkms)" in page
    few = samples.results(visits=1)
    short = replace(few, measurements=tuple(
        replace(one, samples=one.samples[:3], visits=one.visits[:3]) for one in few.measurements
    ))  # fmt: skip
    told = report.html(analyse(short))
    assert f"{len(short.measurements) - 1} have fewer than 6 samples, too few for an interval" in told
    assert "measurements are unstable" not in told
    assert re.search(r"\d of \d+ measurements are unstable: processes disagree \d", page)


def test_an_empty_result_says_so() -> None:
    empty = replace(samples.results(), measurements=(), left_out=())
    told = report.html(analyse(empty))
    assert "Nothing was measured" in told
    assert Elements(told).count("svg") == 0


def test_the_page_is_the_same_for_the_same_result(page: str) -> None:
    assert report.html(samples.analysed()) == page


# --- hostile results --------------------------------------------------------------------------------------------------

HOSTILE = (
    "</style></title><script>document.title='broken'</script>",
    "\"'><img src=x onerror=\"document.title='broken'\">",
    "$\\frac{1}{$ &lt;b&gt; ]]> <!-- \x00\x1b[31m \u202egnp.exe \ud800 🦊" + "w" * 3000,
)


def _hostile() -> Results:
    """Make a result in which every text is an attack, and all else as it was."""
    results = samples.results()
    names = {cell.name: f"{HOSTILE[number % 3]}{number}" for number, cell in enumerate(samples.CELLS)}

    def cell(one: Cell) -> Cell:
        return replace(
            one, name=names[one.name], file_system=HOSTILE[0] if one.file_system == "xfs" else one.file_system
        )

    def key(one: Key) -> Key:
        return (
            replace(one, metric=HOSTILE[1])
            if one.scenario in {"lifecycle", "mixed.untar"} and one.metric != "clone"
            else one
        )

    kept = {}
    for one in results.measurements:
        changed = replace(one, cell=cell(one.cell), key=key(one.key), reason=HOSTILE[0] if one.reason else "")
        kept[changed.identity] = changed
    machine = replace(results.fingerprint, cpu=HOSTILE[0], kernel=HOSTILE[1], system=HOSTILE[2], user=HOSTILE[1])
    run = replace(results.run, profile=HOSTILE[0], sync_policy=HOSTILE[1], command=HOSTILE)
    left = (LeftOut(HOSTILE[0], HOSTILE[1], HOSTILE[2]),)
    return Results(run, machine, tuple(kept.values()), left)


@pytest.fixture(scope="module")
def hostile() -> str:
    """Give the page of a result that attacks it."""
    return report.html(analyse(_hostile()))


def test_names_are_text_and_nothing_else(hostile: str) -> None:
    elements = Elements(hostile)
    assert {tag for tag, _ in elements.found}.isdisjoint({"script", "img", "iframe", "link", "object", "embed", "b"})
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    assert elements.count("style") == 1
    assert elements.count("title") == 1
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", hostile)
    hostile.encode()  # no lone surrogate either
    assert "&lt;script&gt;" in hostile


def test_a_page_loads_nothing(page: str, hostile: str) -> None:
    for text in (page, hostile):
        elements = Elements(text)
        addresses = [
            value
            for _, found in elements.found
            for name, value in found.items()
            if name in {"src", "href", "xlink:href"}
        ]
        assert addresses
        assert all(value and value.startswith("#") for value in addresses)
        assert "@import" not in text
        assert not re.search(r"url\((?!#)", text)
        (policy,) = [found["content"] for _, found in elements.found if found.get("http-equiv")]
        assert policy
        assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")


def test_a_spreadsheet_runs_nothing(tmp_path: Path) -> None:
    results = _hostile()
    named = replace(results.measurements[0], cell=replace(results.measurements[0].cell, name='=HYPERLINK("http://x")'))
    report.write_csv(replace(results, measurements=(named, *results.measurements[1:])), tmp_path / "x.csv")
    rows = list(csv.reader((tmp_path / "x.csv").read_text(encoding="utf-8").splitlines()))
    assert len({len(row) for row in rows}) == 1
    assert not [text for row in rows for text in row if text.startswith(("=", "+", "@"))]
    assert any(row[rows[0].index("cell")] == '\'=HYPERLINK("http://x")' for row in rows)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_page_and_table(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    document.write(samples.results(), path)
    done = CliRunner().invoke(cli, ["bench", "report", str(path)])
    assert (done.exit_code, done.stdout) == (0, f"{path.with_suffix('.html')}\n"), done.output
    assert path.with_suffix(".html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    done = CliRunner().invoke(cli, ["bench", "report", str(path), "--csv", "-o", str(tmp_path / "figures.csv")])
    assert done.exit_code == 0
    rows = list(csv.DictReader((tmp_path / "figures.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == sum(1 for one in samples.results().measurements if one.samples)
    first = next(row for row in rows if (row["scenario"], row["cell"], row["size"]) == ("write.first", "btrfs", "4096"))
    assert float(first["device_written"]) == pytest.approx(3e5, rel=0.02)
    assert CliRunner().invoke(cli, ["bench", "report", str(tmp_path / "missing.json")]).exit_code == 3


def test_the_terminal_shows_ratios_plots_and_doubts(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    document.write(samples.results(), path)
    done = CliRunner().invoke(cli, ["bench", "show", str(path)])
    assert done.exit_code == 0
    assert re.search(r"^overlay2-ext4 +1\d\.\d× +", done.stdout, re.MULTILINE)
    assert re.search(r"^ *\d+\.?\d* µs ┤.*[●■◆▲▼✚✖○□]", done.stdout, re.MULTILINE)
    signs = re.findall(r"(\S) (?:plain-)?(?:overlay2|fuse|btrfs|copy|ext4|xfs)\S*(?=   |$)", done.stdout, re.MULTILINE)
    assert len(set(signs)) >= len(samples.CELLS)  # told apart without colour
    assert "timed out: write.first, 1.0 GiB on overlay2-ext4: it did not end within 30 s" in done.stdout
    assert "\x1b" not in done.stdout
    rows = re.findall(r"^(?:CELL|overlay2-ext4) .*", done.stdout, re.MULTILINE)
    assert len(rows) >= 4, "the table is not broken up"
    assert max(map(len, rows)) <= 100
    shown = json.loads(CliRunner().invoke(cli, ["--json", "bench", "show", str(path)]).stdout)
    assert len(shown["measurements"]) == len(samples.analysed().rows)
    assert [one["figure"] for one in shown["findings"]] == PLOTS


def test_hostile_names_do_no_harm_in_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    document.write(_hostile(), path)
    done = CliRunner().invoke(cli, ["bench", "show", str(path)])
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout


# --- in a browser -----------------------------------------------------------------------------------------------------

PROBE = """<script>
window.addEventListener('error', event => document.body.append('SCRIPT ERROR ' + event.message));
window.addEventListener('load', () => {
  const look = element => getComputedStyle(element);
  const ids = [...document.querySelectorAll('[id]')].map(one => one.id);
  const found = {
    plots: [...document.querySelectorAll('.plot svg')].map(svg => {
      const box = svg.getBoundingClientRect();
      const lines = [...svg.querySelectorAll('[class^=s]')].map(one => one.querySelector('path')).filter(Boolean);
      return [box.width, box.height, lines.length, [...new Set(lines.map(one => look(one).stroke))].length];
    }),
    twice: ids.filter((id, place) => ids.indexOf(id) !== place),
    across: document.documentElement.scrollWidth, inner: window.innerWidth,
    texts: [...document.querySelectorAll('p, td, th, li, summary, figcaption, svg text, dt, dd, h1, h2')].map(one => {
      let ground = one;
      while (ground && look(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
      const svg = one instanceof SVGElement;
      return [svg ? look(one).fill : look(one).color, ground ? look(ground).backgroundColor : 'none'];
    }).map(String).filter((one, place, all) => all.indexOf(one) === place),
    focusable: document.querySelectorAll('a[href], summary, input, [tabindex="0"]').length,
  };
  document.getElementById('show-3').click();
  found.hidden = [...document.querySelectorAll('.s3')].every(one => look(one).display === 'none');
  found.others = [...document.querySelectorAll('.s4')].every(one => look(one).display !== 'none');
  const result = document.createElement('pre');
  result.id = 'probe-result';
  result.textContent = JSON.stringify(found);
  document.body.append(result);
});
</script>"""


def _probed(page: str, tmp_path: Path, *, dark: bool, width: int = 1200) -> dict[str, Any]:
    """Measure a page in the browser, by a script that the page itself would not let run."""
    open_to_it = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', PROBE, page, count=1)
    path = tmp_path / "probed.html"
    path.write_text(open_to_it, encoding="utf-8")
    loaded = chromium.load(path, tmp_path, dark=dark, width=width)
    assert "SCRIPT ERROR" not in loaded.dom.replace(PROBE, "")
    match = re.search(r'<pre id="probe-result">(.*?)</pre>', loaded.dom, re.DOTALL)
    assert match, loaded.dom[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found


def _contrast(pair: str) -> float:
    """Return the contrast of two colours (WCAG 2.1, 1.4.3); those that are partly clear lie on the card."""
    values = [float(one) for one in re.findall(r"[\d.]+", pair)]
    ink, ground = values[:3], values[3:6]
    bright = [sum(share * _linear(one) for share, one in zip((0.2126, 0.7152, 0.0722), colour, strict=True))
              for colour in (ink, ground)]  # fmt: skip
    return (max(bright) + 0.05) / (min(bright) + 0.05)


def _linear(channel: float) -> float:
    share = channel / 255
    return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_in_a_browser(page: str, tmp_path: Path, *, dark: bool) -> None:
    found = _probed(page, tmp_path, dark=dark)
    assert len(found["plots"]) == len(PLOTS)
    for width, height, lines, colours in found["plots"]:
        assert width > 600
        assert height > 200
        assert lines >= 6  # a line a driver, in some plots also the three plain directories
        assert colours >= 5
    assert found["twice"] == []
    assert found["across"] <= found["inner"]
    assert found["hidden"]
    assert found["others"]
    assert found["focusable"] > 2 * len(PLOTS) + len(samples.CELLS)
    solid = [pair for pair in found["texts"] if "rgba" not in pair and "none" not in pair]
    assert len(solid) >= 3
    assert min(map(_contrast, solid)) >= 4.5, solid
    assert any("rgb(27, 31, 37)" in pair for pair in solid) == dark  # the card of the dark style


@needs_chromium
def test_the_page_in_a_narrow_browser(page: str, tmp_path: Path) -> None:
    found = _probed(page, tmp_path, dark=False, width=500)
    assert found["across"] <= found["inner"]


@needs_chromium
def test_the_browser_asks_nobody_and_complains_of_nothing(page: str, hostile: str, tmp_path: Path) -> None:
    for name, text in (("page", page), ("hostile", hostile)):
        path = tmp_path / f"{name}.html"
        path.write_text(text, encoding="utf-8")
        loaded = chromium.load(path, tmp_path)
        assert loaded.requests == ()
        assert loaded.console == ()
        assert "<title>layerfs bench, 2026-11-20 19:30</title>" in loaded.dom
        assert "<script" not in loaded.dom


@needs_chromium
def test_the_browser_notices_a_page_that_asks(tmp_path: Path) -> None:
    path = tmp_path / "asks.html"
    path.write_text("<img src='http://layerfs.invalid/x.png'><script>nothing.at.all</script>", encoding="utf-8")
    loaded = chromium.load(path, tmp_path)
    assert loaded.requests == ("GET http://layerfs.invalid/x.png HTTP/1.1",)
    assert len(loaded.console) >= 1


def test_a_measurement_that_failed_everywhere_leaves_a_page() -> None:
    results = samples.results()
    failed = (Measurement(one.key, one.cell, Outcome.FAILED, reason="it crashed") for one in results.measurements)
    told = report.html(analyse(replace(results, measurements=tuple(failed))))
    assert told.count("it crashed") == len(results.measurements)
