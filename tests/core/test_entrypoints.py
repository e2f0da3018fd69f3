"""Entry points are found without ``importlib.metadata``, and they are those that it finds."""

from __future__ import annotations

import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from layerfs import entrypoints


@pytest.mark.parametrize("group", ["layerfs.drivers", "layerfs.commands", "console_scripts", "pytest11", "nobody's"])
def test_the_same_as_python_finds(group: str) -> None:
    expected = {found.name: found.value for found in entry_points(group=group)}
    assert {name: found.value for name, found in entrypoints.find(group).items()} == expected


def _package(place: Path, name: str, entries: str) -> None:
    (place / name).mkdir(parents=True)
    (place / name / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.partition('-')[0]}\nVersion: 1\n")
    (place / name / "entry_points.txt").write_text(entries)


def test_what_a_file_may_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = """
        # a comment
        [other]
        a = other:thing
        [group.one]
        plain = json:loads
        spaced  =  json.decoder : JSONDecoder.decode
        extra = json:dumps [all]
        # gone = json:gone
        module = json
        missing = json:nothing.here
    """
    _package(tmp_path / "one", "First_Name-1.0.dist-info", entries)
    _package(tmp_path / "two", "first_name-2.0.dist-info", "[group.one]\nplain = shadowed:by.the.first\n")
    for place in ("two", "one", "nowhere"):
        monkeypatch.syspath_prepend(str(tmp_path / place))
    found = entrypoints.find("group.one")
    assert sorted(found) == ["extra", "missing", "module", "plain", "spaced"]
    import json  # noqa: PLC0415  what is loaded

    assert found["plain"].load() is json.loads
    assert found["spaced"].load() is json.JSONDecoder.decode
    assert found["extra"].load() is json.dumps
    assert found["module"].load() is json
    with pytest.raises(ImportError, match="is not there"):
        found["missing"].load()


def test_packages_in_a_zip_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "packages.zip", "w") as archive:
        archive.writestr("zipped-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: zipped\nVersion: 1\n")
        archive.writestr("zipped-1.dist-info/entry_points.txt", "[zipped.group]\nname = json:loads\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "packages.zip")])
    assert entrypoints.find("zipped.group")["name"].value == "json:loads"
