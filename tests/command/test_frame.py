"""What holds of the whole command: table and entry points, help, start, errors, JSON, colours, plug-ins, completion."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from layerfs.command import cli
from layerfs.commands import BUILTINS
from layerfs.commands.frame.bash import join_colons
from layerfs.commands.frame.failure import describe
from layerfs.commands.frame.spans import span
from layerfs.commands.frame.text import printable, table
from layerfs.commands.frame.units import parse_size, size
from layerfs.errors import Busy, LayerfsError, NotFound
from tests.command.conftest import Command

REPOSITORY = Path(__file__).parents[2]
NAMES = [one.name for one in BUILTINS]


@pytest.fixture
def nowhere(tmp_path: Path) -> Command:
    """Give the command on a store that does not exist."""
    return Command(tmp_path / "no-store", "auto")


def _command(name: str) -> click.Command:
    module, _, attribute = next(one.target for one in BUILTINS if one.name == name).partition(":")
    loaded: click.Command = getattr(import_module(module), attribute)
    return loaded


# --- the table of verbs -----------------------------------------------------------------------------------------------


def test_the_table_is_what_pyproject_declares() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert {one.name: one.target for one in BUILTINS} == project["project"]["entry-points"]["layerfs.commands"]


@pytest.mark.parametrize("name", NAMES)
def test_a_verb_is_what_the_table_says(name: str) -> None:
    command = _command(name)
    row = next(one for one in BUILTINS if one.name == name)
    assert command.name == name.rpartition(".")[2]
    assert (command.help or "").partition("\n")[0] == row.help


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_has_help_with_an_example(name: str) -> None:
    done = CliRunner().invoke(cli, [*name.split("."), "--help"], prog_name="layerfs")
    assert done.exit_code == 0
    lines = done.output.splitlines()
    examples = lines[next(n for n, line in enumerate(lines) if line.startswith("Example")) + 1 :]
    assert any("layerfs" in line for line in examples)
    assert "  Global options" not in done.output
    assert max(map(len, lines)) <= 120


def test_examples_name_verbs_and_options_that_exist() -> None:
    for name in NAMES:
        for example in getattr(_command(name), "examples", ()):
            for words in re.findall(r"layerfs((?: [^|&;$()#]+))", example):
                _check_words(words.split())


def _check_words(words: list[str]) -> None:
    group: click.Command = cli
    with click.Context(cli) as ctx:
        for word in words:
            if isinstance(group, click.Group) and not word.startswith("-") and (found := group.get_command(ctx, word)):
                group = found
            elif word == "--":
                return
            elif word.startswith("-"):
                known = {option for param in (*group.params, *cli.params) for option in param.opts}
                assert word in known, words
    assert group is not cli, words


def test_help_has_every_verb_with_its_help() -> None:
    done = CliRunner().invoke(cli, ["--help"], prog_name="layerfs")
    words = " ".join(done.output.split())
    for one in BUILTINS:
        if "." not in one.name:
            assert f"{one.name} {one.help}" in words
    assert CliRunner().invoke(cli, ["-h"]).output == CliRunner().invoke(cli, ["--help"]).output


def test_without_arguments_help_goes_to_standard_error(nowhere: Command) -> None:
    assert nowhere.fails(2).startswith("Usage: layerfs")


# --- start ------------------------------------------------------------------------------------------------------------

HEAVY = ("rich", "sqlite3", "ctypes", "logging", "importlib.metadata", "json", "pathlib", "subprocess", "tempfile")


def _run_uncovered(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python without coverage, which would start in it as well and import what it needs itself."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, env=environment)


def test_help_imports_neither_the_verbs_nor_the_core() -> None:
    code = (
        "import sys; from layerfs.command import cli; cli.main(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    done = _run_uncovered("-c", code)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert loaded.isdisjoint(HEAVY)
    frame = {"plugins", "lazy", "session", "failure", "text", "verb"}
    ours = {name for name in loaded if name.startswith("layerfs")}
    allowed = {"layerfs", "layerfs.errors", "layerfs.command", "layerfs.commands", "layerfs.commands.frame"}
    allowed |= {"layerfs.entrypoints", "layerfs.privilege"}
    assert ours <= allowed | {f"layerfs.commands.frame.{name}" for name in frame}


def test_the_measuring_script_runs() -> None:
    script = REPOSITORY / "bench/startup.py"
    done = _run_uncovered(str(script), "1", "--imports")
    assert "layerfs --help" in done.stdout
    assert "layerfs.command" in done.stdout


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["imag"], "no such command 'imag'. Did you mean 'image'?"),
        (["image", "imprt"], "no such command 'imprt'. Did you mean 'import'?"),
        (["xyzzy"], "no such command 'xyzzy'."),
        (["--option", "a", "ls"], "'a' is not of the form KEY=VALUE"),
        (["ls", "--option", "=a"], "'=a' is not of the form KEY=VALUE"),
        (["clone"], "missing argument 'IMAGE'"),
        (["ls", "surplus"], "surplus"),
        (["commit", "web", "--compression", "rar"], "'rar' is not one of"),
        (["--frobnicate"], "no such option"),
        (["image"], "Usage: layerfs image"),
    ],
)
def test_a_wrong_usage_says_what_is_wrong_and_where_help_is(nowhere: Command, words: list[str], said: str) -> None:
    error = nowhere.fails(2, *words)
    assert said in error
    assert "Traceback" not in error
    if not error.startswith("Usage"):
        assert error.startswith("layerfs: ")
        assert re.search(r"^hint: usage is `layerfs .*see `layerfs.* --help`$", error, re.MULTILINE)


def test_a_wrong_usage_with_json_is_one_document_too(nowhere: Command) -> None:
    for words in (["--json", "imag"], ["imag", "--json"], ["clone", "--json"]):
        done = nowhere.run(*words)
        assert done.returncode == 2
        document = json.loads(done.stdout)
        assert document["error"]["kind"] == "InvalidArgument"
        assert document["error"]["exit_status"] == 2
        assert done.stderr.startswith("layerfs: ")


def test_an_unknown_driver_is_a_usage_error(nowhere: Command, layout: Path) -> None:
    error = nowhere.fails(2, "--backend", "zzz", "image", "import", layout)
    assert "zzz" in error
    assert "hint: " in error


@pytest.mark.parametrize("verb", [["ls"], ["image", "ls"], ["du"], ["prune"], ["rm", "web"], ["clone", "test:1"]])
def test_a_store_that_is_not_there_is_not_found_and_not_made(nowhere: Command, verb: list[str]) -> None:
    error = nowhere.fails(3, *verb)
    assert "no-store" in error
    assert "hint: " in error
    assert not nowhere.store.exists()


def test_a_directory_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = Command(tmp_path, "copy")
    assert str(tmp_path) in command.fails(3, "ls")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_cause_is_shown_with_v_and_the_trace_with_vv(nowhere: Command, layout: Path) -> None:
    broken = nowhere.store.parent / "file"
    broken.touch()
    words = ["--store", str(broken / "below"), "image", "import", str(layout)]
    plain, why, where = (nowhere.run(*flags, *words) for flags in ([], ["-v"], ["-vv"]))
    assert plain.returncode == why.returncode == where.returncode != 0
    assert "caused by" not in plain.stderr
    assert "caused by: NotADirectoryError" in why.stderr
    assert "Traceback" not in why.stderr
    assert "Traceback" in where.stderr


def _subclasses(kind: type[LayerfsError]) -> list[type[LayerfsError]]:
    return [kind, *(deeper for below in kind.__subclasses__() for deeper in _subclasses(below))]


# Those that make their own words of something else never reach the command; which of them are imported is chance.
@pytest.mark.parametrize("kind", [kind for kind in _subclasses(LayerfsError) if kind.__init__ is LayerfsError.__init__])
def test_the_status_is_that_of_the_error_class(kind: type[LayerfsError], monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command("failing")
    def failing() -> None:
        raise kind("it broke\x1b[31m", hint="mend it")

    monkeypatch.setitem(cli.commands, "failing", failing)
    done = CliRunner().invoke(cli, ["failing"])
    assert done.exit_code == kind.exit_status
    assert done.stderr == "layerfs: it broke\\x1b[31m\nhint: mend it\n"
    document = json.loads(CliRunner().invoke(cli, ["--json", "failing"]).stdout)
    assert document["error"]["kind"] == kind.__name__


def test_a_bug_is_one_line_and_a_trace_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command("failing")
    def failing() -> None:
        raise LookupError("a bug")

    monkeypatch.setitem(cli.commands, "failing", failing)
    done = CliRunner().invoke(cli, ["failing"])
    assert done.exit_code == 1
    assert done.stderr.startswith("layerfs: internal error: LookupError: a bug\nhint: ")
    assert "Traceback" in CliRunner().invoke(cli, ["-vv", "failing"]).stderr


def test_an_error_keeps_its_hint_apart() -> None:
    assert describe(Busy("in use", hint="wait")).document() == {
        "kind": "Busy",
        "message": "in use",
        "exit_status": 4,
        "hint": "wait",
    }
    assert "hint" not in describe(NotFound("gone")).document()


# --- interruptions ----------------------------------------------------------------------------------------------------

WAITING = """
import sys, time, click
from layerfs.command import cli, main
@cli.command("wait")
def wait():
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        print("tidied up", flush=True)
sys.argv[1:] = ["wait"]
main()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_tidily(number: signal.Signals, status: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    out, error = child.communicate(timeout=30)
    assert child.returncode == status
    assert out == "tidied up\n"
    assert "Traceback" not in error
    assert ("interrupted" in error) == (number == signal.SIGINT)


def test_a_reader_that_goes_away_is_no_error(nowhere: Command) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for words in (["completion", "bash"], ["--json", "completion", "bash"]):
        done = nowhere.run(*words, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
        assert done.stderr == ""
        assert done.returncode == 141
    os.close(writer)


def test_output_that_cannot_be_written_is_an_error(nowhere: Command) -> None:
    with open("/dev/full", "w") as full:
        done = nowhere.run("completion", "bash", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


# --- output -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (102_300, "99.9 KiB"),
        (102_400, "100 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1024**2, "1.0 MiB"),
        (10 * 1024**3, "10.0 GiB"),
        (5000 * 1024**6, "5000 EiB"),
    ],
)
def test_sizes_are_iec(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("10G", 10 * 1024**3),
        ("1.5m", 3 * 512 * 1024),
        ("2 KiB", 2048),
        ("7B", 7),
        ("1tb", 1024**4),
    ],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "G", "-1G", "1 X", "1.G", "ten", "1GG", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("5m", 300), ("1.5h", 5400), ("7d", 604800), ("2w", 1209600)]
)
def test_spans_are_read(text: str, seconds: int) -> None:
    assert span(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "0", "0d", "-1h", "1y", "1 h", "9" * 30 + "w"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        span(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain", "plain"),
        ("größe 大", "größe 大"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("two\nlines", "two\\nlines"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        (b"caf\xe9", "caf\\xe9"),
        (b"caf\xc3\xa9", "café"),
        ("nul\0", "nul\\x00"),
    ],
)
def test_names_are_shown_harmless(name: str | bytes, text: str) -> None:
    assert printable(name) == text


def test_a_table_is_aligned() -> None:
    shown = click.unstyle(table(("NAME", "SIZE"), [("a", "1 B"), ("longer", "20 KiB")], right=("SIZE",)))
    assert shown.splitlines() == ["NAME       SIZE", "a           1 B", "longer   20 KiB"]


def test_colour_is_for_terminals_that_want_it(nowhere: Command) -> None:
    assert "\x1b" not in nowhere.run("imag").stderr
    assert "\x1b[31m" in _on_a_terminal(nowhere, ["imag"], {})
    assert "\x1b" not in _on_a_terminal(nowhere, ["imag"], {"NO_COLOR": "1"})


def _on_a_terminal(command: Command, words: list[str], environment: dict[str, str]) -> str:
    """Run it with a pseudo-terminal as its standard error, and return what came there."""
    control, terminal = os.openpty()
    settings: dict[str, Any] = {"capture_output": False, "stdout": subprocess.DEVNULL, "stderr": terminal}
    command.run(*words, env={"TERM": "xterm", **environment}, **settings)
    os.close(terminal)
    seen = b""
    try:
        while part := os.read(control, 4096):
            seen += part
    except OSError:  # EIO: the other end is closed
        pass
    os.close(control)
    return seen.decode()


def test_the_version(nowhere: Command) -> None:
    assert re.fullmatch(r"layerfs \d+\.\d+\.\d+\S*", nowhere("--version"))


# --- sub-commands of other packages -----------------------------------------------------------------------------------


@pytest.fixture
def plugins(tmp_path: Path) -> Command:
    """Give the command beside a package that brings verbs of its own."""
    (tmp_path / "acme.py").write_text(
        "import click\n"
        "@click.command()\n"
        "def hello():\n"
        '    """Say hello."""\n'
        "    print('hello')\n"
        "group = click.Group('more', {'hello': hello}, help='Do more.')\n"
        "number = 7\n"
    )
    metadata = tmp_path / "acme-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[layerfs.commands]\n"
        "hello = acme:hello\nmore = acme:group\nimage.hello = acme:hello\n"
        "ls = acme:hello\nbroken = acme_is_not_there:x\nodd = acme:number\n"
    )
    return Command(tmp_path / "store", "copy", {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})


def test_verbs_of_others_are_listed_and_run(plugins: Command) -> None:
    shown = plugins("--help")
    assert re.search(r"^Other commands:\n", shown, re.MULTILINE)
    assert re.search(r"^  hello +Say hello\.$", shown, re.MULTILINE)
    assert re.search(r"^  broken +\(cannot be loaded: No module named 'acme_is_not_there'\)$", shown, re.MULTILINE)
    assert re.search(r"^  hello +Say hello\.$", plugins("image", "--help"), re.MULTILINE)
    assert [plugins("hello"), plugins("more", "hello"), plugins("image", "hello")] == ["hello"] * 3


def test_no_other_package_takes_over_a_verb(plugins: Command) -> None:
    assert "is no layerfs store" in plugins.fails(3, "ls")


def test_a_verb_of_others_that_is_broken_says_so(plugins: Command) -> None:
    assert "acme_is_not_there" in plugins.fails(1, "broken")
    assert "no click command" in plugins.fails(1, "odd")


# --- completion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(nowhere: Command, shell: str) -> None:
    script = nowhere("completion", shell)
    assert "_LAYERFS_COMPLETE" in script
    assert nowhere.json("completion", shell) == {"shell": shell, "script": f"{script}\n"}


def test_the_script_is_valid_bash(nowhere: Command) -> None:
    subprocess.run(["bash", "-n"], input=nowhere("completion", "bash"), text=True, check=True)


def _completions(command: Command, *words: str) -> list[str]:
    """Return what the tab key offers for the last word."""
    environment = {"_LAYERFS_COMPLETE": "bash_complete", "COMP_WORDS": "\n".join(("layerfs", *words))}
    shown = command("", env={**environment, "COMP_CWORD": str(len(words))})
    return [line.partition(",")[2] for line in shown.splitlines()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["im"], ["image"]),
        (["image", "i"], ["import", "inspect"]),
        (["sto"], ["store"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["commit", "web", "--compression", "z"], ["zstd"]),
        (["--backend", "o"], ["overlay2"]),
        (["ls", "--backend", "cop"], ["copy"]),
        (["--js"], ["--json"]),
        (["rm", ""], []),
    ],
)
def test_completion_of_what_is_always_there(nowhere: Command, words: list[str], offered: list[str]) -> None:
    assert _completions(nowhere, *words) == offered
    assert not nowhere.store.exists()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], []),
        (["a", "b"], ["a", "b"]),
        (["clone", "debian", ":", "1"], ["clone", "debian:1"]),
        (["clone", "debian", ":"], ["clone", "debian:"]),
        (["x:", "y"], ["x:y"]),
        (["host", ":", "5000/a", ":", ""], ["host:5000/a:"]),
    ],
)
def test_bash_breaks_words_at_colons(parts: list[str], words: list[str]) -> None:
    assert join_colons(parts) == words
