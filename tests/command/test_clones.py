"""The verbs for clones, on real stores."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.command.conftest import Command, is_mounted
from tests.support import images as samples


def _write(command: Command, clone: str, path: str, content: str | None, target: Path) -> None:
    """Change a file of a clone through a mount, which only root has."""
    target.mkdir(exist_ok=True)
    command("mount", clone, target)
    try:
        place = target / path
        if content is None:
            place.unlink()
        else:
            place.write_text(content)
    finally:
        command("umount", clone)


def test_clone_prints_the_name(layerfs: Command, layout: Path) -> None:
    layerfs("image", "import", layout)
    assert layerfs("clone", "test:1", "web") == "web"
    made_up = layerfs("clone", "test:1")
    assert re.fullmatch(r"test-1-[0-9a-f]{6}", made_up)
    assert sorted(layerfs("-q", "ls").splitlines()) == sorted(["web", made_up])
    document = layerfs.json("clone", "test:1", "third")
    assert document["name"] == "third"
    assert document["image"] == layerfs.json("image", "inspect", "test:1")["image"]["digest"]
    assert document["mounts"] == document["snapshots"] == []


def test_a_name_that_is_taken(stocked: Command) -> None:
    error = stocked.fails(4, "clone", "test:1", "web")
    assert "'web'" in error
    assert "hint: " in error


@pytest.mark.parametrize("name", ["-x", "a/b", "", "a b", "..", "x" * 200])
def test_a_name_that_cannot_be(stocked: Command, name: str) -> None:
    assert stocked.fails(2, "clone", "--", "test:1", name)
    assert stocked("-q", "ls") == "web"


def test_ls(stocked: Command) -> None:
    headings, row = stocked("ls").splitlines()
    assert headings.split() == ["NAME", "IMAGE", "CREATED", "SNAPSHOTS", "QUOTA", "MOUNTED", "ON"]
    assert row.split()[:2] == ["web", "test:1"]
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d", row)


def test_global_options_stand_before_or_after_the_verb(stocked: Command, tmp_path: Path) -> None:
    assert json.loads(stocked("ls", "--json")) == stocked.json("ls")
    assert stocked("ls", "-q") == stocked("-q", "ls") == "web"
    elsewhere = {"LAYERFS_STORE": str(tmp_path / "not-this-one")}
    assert stocked("--store", stocked.store, "ls", "-q", env=elsewhere) == "web"
    assert stocked("ls", "-q", "--store", stocked.store, env=elsewhere) == "web"
    relative = stocked("--store", stocked.store.name, "-q", "ls", cwd=stocked.store.parent, env=elsewhere)
    assert relative == "web"


def test_any_unique_prefix_names_a_clone(stocked: Command) -> None:
    stocked("clone", "test:1", "worker")
    assert stocked.json("snapshot", "we", "a") == {"clone": "web", "snapshot": "a"}
    assert "several" in stocked.fails(2, "snapshot", "w", "b")


def test_a_clone_that_is_not_there(stocked: Command, tmp_path: Path) -> None:
    for words in (["fork", "x"], ["snapshot", "x"], ["rollback", "x"], ["commit", "x"], ["rm", "x"], ["diff", "x"]):
        error = stocked.fails(3, *words)
        assert "'x'" in error
        assert "hint: " in error
    if os.geteuid() == 0:
        for words in (["mount", "x", str(tmp_path)], ["umount", "x"], ["umount", "/nowhere"], ["shell", "x"]):
            assert stocked.fails(3, *words)


def test_rm_goes_on_and_tells_that_it_was_partly_done(stocked: Command) -> None:
    stocked("clone", "test:1", "second")
    done = stocked.run("rm", "web", "missing", "second", "web")
    assert (done.returncode, done.stdout) == (9, "web\nsecond\n")
    assert "no clone 'missing'" in done.stderr
    assert stocked("-q", "ls") == ""


def test_rm_tells_what_failed_in_its_document(stocked: Command) -> None:
    done = stocked.run("--json", "rm", "web", "missing")
    document = json.loads(done.stdout)
    assert document["removed"] == ["web"]
    assert document["failed"][0]["name"] == "missing"
    assert document["failed"][0]["kind"] == "NotFound"
    assert stocked.run("--json", "rm", "missing").returncode == 3


def test_a_fresh_clone_differs_in_nothing(stocked: Command) -> None:
    assert stocked("diff", "web") == ""
    assert stocked.json("diff", "web") == {"changes": []}


def test_diff_of_images(layerfs: Command, tmp_path: Path) -> None:
    layerfs("image", "import", samples.write_layout(tmp_path / "a", [samples.BASE], name="a:1"))
    layerfs("image", "import", samples.write_layout(tmp_path / "b", [samples.BASE, samples.SHRINK], name="b:1"))
    lines = layerfs("-q", "diff", "a:1", "b:1").splitlines()
    assert {"D /var/big", "A /var/small"} <= set(lines)
    document = layerfs.json("diff", "a:1", "b:1")["changes"]
    assert {"kind": "added", "path": "var/small", "size": 1} in document
    assert "x" in layerfs.fails(3, "diff", "a:1", "x")


@pytest.mark.root
def test_what_is_written_is_seen_by_diff(stocked: Command, fresh_dir: Path) -> None:
    target = fresh_dir / "mnt"
    _write(stocked, "web", "etc/issue", "changed\n", target)
    _write(stocked, "web", "var/small", None, target)
    _write(stocked, "web", "etc/two\nlines\x1b[2J", "odd\n", target)
    lines = stocked("-q", "diff", "web").splitlines()
    assert {"M /etc/issue", "D /var/small", "A /etc/two\\nlines\\x1b[2J"} <= set(lines)
    paths = {change["path"] for change in stocked.json("diff", "web")["changes"]}
    assert "etc/two\nlines\x1b[2J" in paths


@pytest.mark.root
def test_a_name_that_is_not_utf8_is_exact_in_json(stocked: Command, fresh_dir: Path) -> None:
    _write(stocked, "web", os.fsdecode(b"caf\xe9"), "x", fresh_dir / "mnt")
    assert "A /caf\\xe9" in stocked("-q", "diff", "web").splitlines()
    (change,) = [one for one in stocked.json("diff", "web")["changes"] if "path_base64" in one]
    assert (change["path"], change["path_base64"]) == ("caf\ufffd", "Y2Fm6Q==")


@pytest.mark.root
def test_diff_shows_sizes_and_sums_them_up(stocked: Command, fresh_dir: Path) -> None:
    target = fresh_dir / "mnt"
    _write(stocked, "web", "etc/issue", "changed\n", target)
    _write(stocked, "web", "var/small", None, target)
    _write(stocked, "web", "var/log", "x" * 2048, target)
    lines = stocked("diff", "web").splitlines()
    assert {"M      8 B  /etc/issue", "D      1 B  /var/small", "A  2.0 KiB  /var/log"} <= set(lines)
    document = stocked.json("diff", "--stat", "web")
    assert document["stat"]["added"] == {"count": 1, "size": 2048}
    assert document["stat"]["deleted"] == {"count": 1, "size": 1}
    assert document["stat"]["modified"]["size"] == 8
    assert document["directories"][0] == {"path": "var", "count": 2, "size": 2049}
    kinds, directories = stocked("diff", "--stat", "web").split("\n\n")
    assert kinds.splitlines()[1].split() == ["added", "1", "2.0", "KiB"]
    assert directories.splitlines()[1].split() == ["/var", "2", "2.0", "KiB"]
    assert stocked.json("diff", "--stat", "web", "web")["directories"] == []


@pytest.mark.root
def test_verify_content_finds_what_no_time_tells(stocked: Command, mounted: Path) -> None:
    issue = mounted / "etc/issue"
    before = issue.stat()
    issue.write_text(issue.read_text().upper())
    os.utime(issue, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "M /etc/issue" not in stocked("-q", "diff", "test:1", "web").splitlines()
    assert "M /etc/issue" in stocked("-q", "diff", "--verify-content", "test:1", "web").splitlines()
    assert "M /etc/issue" in stocked("-q", "diff", "--verify-content", "web").splitlines()


@pytest.mark.root
def test_diff_opens_whatever_has_a_tree(stocked: Command, fresh_dir: Path) -> None:
    _write(stocked, "web", "one", "1", fresh_dir / "mnt")
    stocked("snapshot", "web", "first")
    _write(stocked, "web", "two", "2", fresh_dir / "mnt")
    (image,) = stocked.json("image", "ls")["images"]
    names: list[set[str]] = [set(), {"one"}, {"one", "two"}]
    same, top = image["digest"][7:19], image["layers"][-1]
    trees = {"test:1": names[0], same: names[0], top: names[0], "web@first": names[1], "web": names[2]}
    for before, seen in trees.items():
        for after, shown in trees.items():
            changes = stocked.json("diff", before, after)["changes"]
            assert {change["path"] for change in changes if change["path"] != "."} == seen ^ shown
            assert {change["kind"] for change in changes if change["path"] != "."} <= {
                "added" if shown > seen else "deleted"
            }
    assert "var/big" in {change["path"] for change in stocked.json("diff", image["layers"][0])["changes"]}


@pytest.mark.root
def test_snapshot_and_rollback(stocked: Command, fresh_dir: Path) -> None:
    target = fresh_dir / "mnt"
    _write(stocked, "web", "one", "1", target)
    assert stocked("snapshot", "web", "first") == "first"
    _write(stocked, "web", "two", "2", target)
    assert {"A /one", "A /two"} <= set(stocked("-q", "diff", "web").splitlines())
    assert "A /one" not in stocked("-q", "diff", "web@first", "web").splitlines()
    assert "A /two" in stocked("-q", "diff", "web@first", "web").splitlines()
    assert stocked.json("rollback", "web", "first") == {"clone": "web", "snapshot": "first"}
    changed = stocked("-q", "diff", "web").splitlines()
    assert "A /one" in changed
    assert "A /two" not in changed
    assert "first" in stocked("ls")
    assert "no snapshot 'never'" in stocked.fails(3, "rollback", "web", "never")
    assert stocked("snapshot", "web") == "1"
    assert stocked.json("ls")["clones"][0]["snapshots"] == ["first", "1"]


@pytest.mark.root
def test_a_fork_starts_from_the_present_state(stocked: Command, fresh_dir: Path) -> None:
    target = fresh_dir / "mnt"
    _write(stocked, "web", "one", "1", target)
    assert stocked("fork", "web", "other") == "other"
    _write(stocked, "other", "two", "2", target)
    assert {"A /one", "A /two"} <= set(stocked("-q", "diff", "other").splitlines())
    assert "A /two" not in stocked("-q", "diff", "web").splitlines()
    assert stocked("fork", "web").startswith("web-")


@pytest.mark.root
@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
def test_commit_makes_an_image_with_one_layer_more(stocked: Command, fresh_dir: Path, compression: str) -> None:
    _write(stocked, "web", "etc/new", "new\n", fresh_dir / "mnt")
    words = ["commit", "web", "test:2", "-m", "a word", "-a", "somebody", "--compression", compression]
    image = stocked.json(*words)
    assert image["names"] == ["test:2"]
    assert len(image["layers"]) == 4
    newest = stocked.json("image", "history", "test:2")["history"][0]
    assert (newest["comment"], newest["author"]) == ("a word", "somebody")
    assert "A /etc/new" in stocked("-q", "diff", "test:1", "test:2").splitlines()
    assert stocked("clone", "test:2", "next") == "next"
    assert stocked("diff", "next") == ""


def test_a_commit_without_a_name_prints_the_digest(stocked: Command) -> None:
    digest = stocked("commit", "web")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
    unnamed = stocked.json("image", "inspect", digest[7:20])["image"]
    assert unnamed["names"] == []
    assert digest[7:19] in stocked("-q", "image", "ls").splitlines()


@pytest.mark.root
def test_mount_and_umount(stocked: Command, mounted: Path) -> None:
    assert (mounted / "etc/issue").read_text() == "layerfs test, second layer\n"
    assert not (mounted / "var/big").exists()
    assert str(mounted) in stocked("ls")
    assert stocked.json("ls")["clones"][0]["mounts"] == [str(mounted)]
    assert stocked("umount", "web") == "web"
    assert not is_mounted(mounted)
    assert "not mounted" in stocked.fails(4, "umount", "web")


@pytest.mark.root
def test_umount_by_the_directory(stocked: Command, mounted: Path) -> None:
    stocked("umount", f"./{mounted.name}", cwd=mounted.parent)
    assert not is_mounted(mounted)


@pytest.mark.root
def test_what_is_mounted_is_busy_and_the_error_says_where(stocked: Command, mounted: Path) -> None:
    for words in (["rm", "web"], ["rollback", "web"], ["mount", "web", str(mounted)]):
        error = stocked.fails(4, *words)
        assert str(mounted) in error, words
        assert "hint: " in error
        assert "umount" in error
    hint = re.search(r"layerfs (umount \S+)", stocked.fails(4, "rm", "web"))
    assert hint is not None
    stocked(*hint[1].split())
    assert stocked("rm", "web") == "web"


@pytest.mark.root
def test_a_mount_that_somebody_uses_names_them(stocked: Command, mounted: Path) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=mounted) as child:
        try:
            error = stocked.fails(4, "umount", "web")
        finally:
            child.terminate()
    assert f"sleep (pid {child.pid})" in error


@pytest.mark.root
def test_a_volatile_mount(stocked: Command, fresh_dir: Path) -> None:
    target = fresh_dir / "mnt"
    target.mkdir()
    if stocked.backend == "copy":
        assert "volatile" in stocked.fails(5, "mount", "--volatile", "web", target)
        return
    stocked("mount", "--volatile", "web", target)
    try:
        (target / "fast").touch()
    finally:
        stocked("umount", "web")
    assert "A /fast" in stocked("-q", "diff", "web").splitlines()


def test_du(stocked: Command) -> None:
    usage = {one["name"]: one for one in stocked.json("du")["usage"]}
    assert usage["test:1"]["kind"] == "image"
    assert usage["test:1"]["exclusive"]["size"] > 0
    assert usage["web"]["kind"] == "clone"
    lines = stocked("du").splitlines()
    assert lines[0].split() == ["NAME", "KIND", "EXCLUSIVE", "INODES", "SHARED", "SHARED", "INODES"]
    assert any(re.match(r"test:1 +image +[\d.]+ (B|[KM]iB)", line) for line in lines)
    document = stocked.json("du", "--layers")
    layers = [one for one in document["usage"] if one["kind"] == "layer"]
    assert [one["users"] for one in layers] == [["test:1"]] * 3
    assert document["total"]["size"] == sum(part["size"] for part in document["parts"].values())
    assert "in all " in stocked.run("du").stderr


def test_prune_shows_and_does_with_force(stocked: Command) -> None:
    done = stocked.run("prune")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "nothing to remove\n")
    digest = stocked("commit", "web")
    plan = stocked.json("prune")
    assert not plan["done"]
    assert digest in {item["name"] for item in plan["items"]}
    assert plan["size"] == sum(item["size"] for item in plan["items"])
    assert "layerfs prune --force" in stocked.run("prune").stderr
    assert stocked.json("image", "inspect", digest)
    assert stocked.json("prune", "--force")["done"]
    stocked.fails(3, "image", "inspect", digest)
    assert stocked.json("prune")["items"] == []
    assert stocked("-q", "ls") == "web"


# --- shell ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(layerfs: Command, shell_layout: Path) -> Command:
    """Give the command on a store with a clone, box, in which a shell runs."""
    if shutil.which("busybox") is None:
        pytest.skip("needs busybox-static")
    layerfs("image", "import", shell_layout)
    layerfs("clone", "shell:1", "box")
    return replace(layerfs, in_process=False)  # what runs in a clone writes to the real standard output


@pytest.mark.root
def test_a_command_runs_in_the_clone(shell: Command) -> None:
    assert shell("shell", "box", "--", "cat", "/etc/issue") == "layerfs test"
    assert shell("shell", "box", "cat", "/etc/issue") == "layerfs test"
    shell("shell", "box", "--", "sh", "-c", "echo hello > /etc/motd")
    assert "A /etc/motd" in shell("-q", "diff", "box").splitlines()
    assert shell("rm", "box") == "box"


@pytest.mark.root
def test_the_shell_takes_its_commands_from_standard_input(shell: Command) -> None:
    done = shell.run("shell", "box", stdin=None, input="echo here; cat /etc/issue; exit 5\n")
    assert (done.returncode, done.stdout) == (5, "here\nlayerfs test\n")


@pytest.mark.root
def test_the_exit_status_is_that_of_the_command(shell: Command) -> None:
    assert shell.run("shell", "box", "--", "sh", "-c", "exit 42").returncode == 42
    assert shell.run("shell", "box", "--", "sh", "-c", "kill -9 $$").returncode == 137
    assert "/no/such/program" in shell.fails(3, "shell", "box", "--", "/no/such/program")


@pytest.mark.root
def test_variables_of_the_image_and_of_the_caller(shell: Command) -> None:
    words = ["shell", "-e", "GIVEN=a=b", "box", "--", "env"]
    lines = shell(*words, env={"TERM": "vt100", "SECRET": "no"}).splitlines()
    assert {"FROM_IMAGE=yes", "GIVEN=a=b", "TERM=vt100", "PATH=/bin:/usr/bin", "HOME=/root"} <= set(lines)
    assert not any(line.startswith("SECRET") for line in lines)


@pytest.mark.root
def test_a_shell_has_no_document(shell: Command) -> None:
    assert shell.run("--json", "shell", "box").returncode == 2


@pytest.mark.root
def test_the_main_job_in_processes_of_their_own(shell: Command, shell_layout: Path, fresh_dir: Path) -> None:
    """Import, clone, change, commit, export, and import elsewhere: the same files come out."""
    shell("shell", "box", "--", "sh", "-c", "echo hello > /etc/motd; rm /etc/issue")
    made = shell("commit", "box", "shell:2", "-m", "say hello")
    shell("image", "export", "shell:2", "-o", fresh_dir / "out.tar")
    other = replace(shell, store=fresh_dir / "other", backend="copy")
    assert other.json("image", "import", fresh_dir / "out.tar")["images"][0]["digest"] == made
    other("clone", "shell:2", "again")
    assert other("shell", "again", "--", "cat", "/etc/motd") == "hello"
    assert "No such file" in other.run("shell", "again", "--", "cat", "/etc/issue").stderr
    assert shell("image", "import", shell_layout).endswith(" shell:1")
