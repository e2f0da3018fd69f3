"""A real Debian or Ubuntu image, made once from the host's own apt sources by mmdebstrap and umoci, and kept.

Five layers: what mmdebstrap installs; packages that apt adds (one with a file capability); deletions, and everything
that can take the place of something else; an opaque directory; a directory that is gone. The cache is
``LAYERFS_TEST_CACHE``, or ``layerfs-tests`` in the user's cache directory (XDG base directory specification).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support import drivers

REFERENCE = "debian:edited"
"""The image's name once it is imported."""
LAYERS = 5

_TOOLS = ("mmdebstrap", "umoci", "apt-get", "apt-config", "dpkg", "setfacl", "chroot", "unshare")
_TAG = REFERENCE.partition(":")[2]
_PACKAGES = ("iputils-ping", "libcap2-bin", "less")
_KEEP_DAYS = 14
_TARGETS = "$(ORIGIN)|deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
_ORIGINS = ("Debian", "Ubuntu", "$(ORIGIN)")
"""Others' archives are left out: their keys are not in the image. apt leaves the words as they are where it has not
fetched an archive's Release file."""
_OPTIONS = ("Acquire::Check-", "Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Retries")
"""Starts of the names of apt settings without which the host would not reach its mirror."""


class Unavailable(Exception):
    """Report that the image cannot be made on this host, and why."""


def layout() -> Path:
    """Return an OCI layout with the image alone, making it first if the cache does not hold it; only root can."""
    if missing := [tool for tool in _TOOLS if not shutil.which(tool)]:
        raise Unavailable(f"not installed: {', '.join(missing)}")
    sources, options = host_sources(), _options()
    key = hashlib.sha256("\n".join([Path(__file__).read_text("utf-8"), sources, *options]).encode()).hexdigest()
    cache = cache_directory()
    found = cache / f"debian-{key[:16]}"
    if not found.exists():
        with drivers.workspace("debian") as work, tempfile.TemporaryDirectory(dir=cache, prefix="new-") as place:
            _build(work, sources, options)
            new = Path(place, "layout")
            shutil.copytree(work / "debian", new)
            with contextlib.suppress(FileExistsError):  # another run was faster
                new.rename(found)
        _forget_old(cache, found)
    os.utime(found)
    return found


def mirror_problem() -> str | None:
    """Return why this host itself cannot read its apt sources just now; None where it can."""
    with drivers.workspace("apt") as work:
        (work / "lists/partial").mkdir(parents=True)
        (work / "cache/archives/partial").mkdir(parents=True)
        places = (f"Dir::State::Lists={work / 'lists'}", f"Dir::Cache={work / 'cache'}")
        options = (*places, "APT::Sandbox::User=root", "Acquire::Languages=none")
        done = subprocess.run(
            ["apt-get", *(f"--option={option}" for option in options), "--error-on=any", "update"],
            check=False,
            capture_output=True,
            text=True,
        )
        return (done.stderr or done.stdout)[-500:] if done.returncode else None


def cache_directory() -> Path:
    chosen = os.environ.get("LAYERFS_TEST_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(chosen) if chosen else Path(home) / "layerfs-tests"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _forget_old(cache: Path, used: Path) -> None:
    """Remove the images of earlier recipes that nobody asked for lately."""
    for path in cache.glob("debian-*"):
        if path != used and path.stat().st_mtime < time.time() - _KEEP_DAYS * 86_400:
            shutil.rmtree(path, ignore_errors=True)


# -- the host's apt ----------------------------------------------------------------------------------------------------


def host_sources() -> str:
    """Return the host's own sources in one-line form, as apt itself understands them."""
    lines = _run("apt-get", "indextargets", "--format", _TARGETS, "Created-By: Packages").splitlines()
    found = [line.partition("|")[2] for line in lines if line.startswith(_ORIGINS)]
    main = [line for line in dict.fromkeys(found) if line.endswith(" main")]
    if not main:
        raise Unavailable("this host has no apt source of Debian or Ubuntu")
    return "\n".join(main)


def _options() -> list[str]:
    """Return the settings by which the host reaches its mirror; the image keeps them, so that apt works in it too."""
    dumped = _run("apt-config", "dump").splitlines()
    return ['Acquire::Languages "none";', *(line for line in dumped if line.startswith(_OPTIONS))]


# -- the recipe --------------------------------------------------------------------------------------------------------


def _build(work: Path, sources: str, options: Sequence[str]) -> None:
    """Make the layout ``work/debian``."""
    image = f"{work / 'debian'}:{_TAG}"
    try:
        _bootstrap(work / "base.tar", sources, options)
        _run("umoci", "init", "--layout", work / "debian")
        _run("umoci", "new", "--image", image)
        _run("umoci", "raw", "add-layer", "--image", image, work / "base.tar")
        (work / "base.tar").unlink()
        _run("umoci", "unpack", "--image", image, work / "bundle")
        root = work / "bundle/rootfs"
        for step in (_install, _edit):
            step(root)
            _run("umoci", "repack", "--refresh-bundle", "--image", image, work / "bundle")
        _insert(work, image)
        _run("umoci", "config", "--image", image, "--config.cmd", "/bin/bash", "--config.env", "FROM_IMAGE=yes")
        _run("umoci", "gc", "--layout", work / "debian")
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout or "").strip()[-1500:]
        raise Unavailable(f"the Debian image cannot be made: `{error.cmd[0]}` said: {words}") from error


def _bootstrap(archive: Path, sources: str, settings: Sequence[str]) -> None:
    options = ("--quiet", "--mode=root", "--variant=minbase", "--format=tar")
    words = [f"--aptopt={setting.removesuffix(';')}" for setting in settings]
    _run("mmdebstrap", *options, *words, "", archive, "-", text=sources, TMPDIR=str(archive.parent))


def _install(root: Path) -> None:
    """Let apt install packages, in a mount namespace of its own with the host's /dev."""
    if "https://" in (root / "etc/apt/sources.list").read_text("utf-8"):
        _take_certificates(root)
    script = """set -e
        mount --rbind /dev "$0/dev"
        mount -t proc proc "$0/proc"
        export DEBIAN_FRONTEND=noninteractive LC_ALL=C
        chroot "$0" apt-get -q update
        chroot "$0" apt-get -q -y --no-install-recommends install "$@"
        chroot "$0" apt-get clean
        rm -rf "$0"/var/lib/apt/lists/*"""
    _run("unshare", "--mount", "sh", "-c", script, root, *_PACKAGES)


def _take_certificates(root: Path) -> None:
    """Let apt in the image trust whom the host trusts: its way to the mirror may lead through a proxy of its own."""
    host = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
    inside = root / "etc/ssl/certs/ca-certificates.crt"
    inside.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(host, inside)


def _edit(root: Path) -> None:
    """Delete things, put others in their place, and add every kind of file with every kind of attribute."""
    documents = root / "usr/share/doc"
    _replace(documents, root)
    for name in ("less.second", "a-third-less"):
        os.link(root / "usr/bin/less", root / "usr/bin" / name)
    shutil.copy2(root / "usr/bin/perl", root / "usr/bin/perl.new")
    (root / "usr/bin/perl.new").rename(root / "usr/bin/perl")  # it was one file with perl5.x
    place = root / "srv/kinds"
    place.mkdir()
    _make_kinds(place)
    _give_attributes(place, root / "usr/bin/ping")
    os.chown(documents / "less", 12_345, 54_321)
    (root / "etc/shadow").chmod(0o600)
    os.utime(root / "etc/passwd", ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))
    os.utime(root / "var/spool", ns=(1_500_000_000_000_000_001, 1_500_000_000_000_000_001))


def _replace(documents: Path, root: Path) -> None:
    for name in ("bash", "apt", "tar", "sed"):
        shutil.rmtree(documents / name)
    (documents / "apt").write_text("a file in place of a directory\n")
    (documents / "tar").symlink_to("dpkg")
    (documents / "sed").mkdir(mode=0o751)
    (documents / "sed/only").write_text("the only one\n")
    for name in ("etc/hostname", "etc/issue.net", "etc/os-release", "var/lock"):
        (root / name).unlink(missing_ok=True)
    (root / "etc/issue.net").mkdir()
    (root / "etc/issue.net/inside").write_text("a directory in place of a file\n")
    (root / "var/lock").mkdir(mode=0o1777)
    (root / "etc/os-release").write_text('NAME="a file in place of a link"\n')


def _make_kinds(place: Path) -> None:
    os.mkfifo(place / "fifo", 0o620)
    os.mknod(place / "block", 0o60640, os.makedev(7, 255))
    os.mknod(place / "character", 0o20600, os.makedev(1, 7))
    for name in (b"line\nfeed", b"not utf-8 \xff\xfe", b"caf\xc3\xa9", b"n" * 255, b" space and \\ and \t"):
        Path(os.fsdecode(os.fsencode(place) + b"/" + name)).write_text("odd name\n")
    deep = place.joinpath(*("d" * 60 for _ in range(6)))
    deep.mkdir(parents=True)
    (deep / "deep").write_text("beyond ustar's 255\n")
    (place / "dangling").symlink_to("/nowhere/" + "l" * 150)
    with (place / "sparse").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"end")
    (place / "empty").touch()
    (place / "odd-mode").write_text("mode\n")
    (place / "odd-mode").chmod(0o6751)


def _give_attributes(place: Path, capable: Path) -> None:
    os.setxattr(place, "user.layerfs.directory", b"one")
    os.setxattr(place / "empty", "user.layerfs.file", b"\x00binary\xff")
    os.setxattr(place / "empty", "trusted.layerfs", b"root's")
    _run("setfacl", "-m", "u:33:r,g:50:rwx", place / "odd-mode")
    _run("setfacl", "-d", "-m", "u:33:rwx", place / "d".ljust(60, "d"))
    (place / "capable").write_text("file with capability\n")
    os.setxattr(place / "capable", "security.capability", os.getxattr(capable, "security.capability"))
    os.utime(place / "fifo", (0, 0))
    os.utime(place / "character", ns=(4_102_444_800_000_000_001, 4_102_444_800_000_000_001))
    os.utime(place / "dangling", ns=(1_234_567_890_987_654_321, 1_234_567_890_987_654_321), follow_symlinks=False)


def _insert(work: Path, image: str) -> None:
    """Let umoci make the layers that its repack does not: an opaque directory, and a whiteout by itself."""
    fresh = work / "fresh"
    fresh.mkdir()
    (fresh / "new").write_text("all that is left\n")
    _run("umoci", "insert", "--image", image, "--opaque", fresh, "/usr/share/doc/grep")
    _run("umoci", "insert", "--image", image, "--whiteout", "/usr/share/doc/gzip")


def _run(*words: str | Path, text: str = "", **environment: str) -> str:
    done = subprocess.run(
        words,
        check=True,
        input=text,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **environment, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"},
    )
    return done.stdout
