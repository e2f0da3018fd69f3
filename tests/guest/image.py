"""What a guest boots: one of two kernels of Debian's, a small initrd, and a disk of the packages that only guests have.

There is no image of a root file system: the guest sees the host's files (`tests.guest.machine`), so it has the same
Python, the same environment and the same checkout. Nothing is installed on the host for it but what runs it.

OpenZFS's modules are compiled for the cloud kernel from Debian's ``zfs-dkms``, which takes minutes; all else takes
seconds. They are under the CDDL: kept in the cache of whoever builds them, never passed on. The cache is
``LAYERFS_GUEST``, or ``guest`` in that of the tests.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.support import debian
from tests.support.debian import Unavailable

HERE = Path(__file__).parent

_TOOLS = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "gcc": "gcc",
    "make": "make",
    "busybox": "busybox-static",
    "modprobe": "kmod",
    "cpio": "cpio",
    "mkfs.ext4": "e2fsprogs",
}
"""What building takes, and the packages that bring it."""

_KERNEL = "linux-image-cloud-amd64"
_PACKAGES = (
    *("zfsutils-linux", "libzfs4linux", "libnvpair3linux", "libuutil3linux", "libzpool5linux", "python3-pyzfs"),
    *("dmsetup", "libdevmapper1.02.1", "thin-provisioning-tools", "libaio1"),
    *("kmod", "libkmod2"),
)
"""What the guest has beside the host's own, with everything that these need and a host may lack."""

_USER_MODE = "user-mode-linux"
"""Another kernel, which not every release has."""

_EARLY_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "virtiofs", "overlay")
_EARLY_MODULES_OF_USER_MODE = ("overlay",)
"""What `init` loads before the packages are there; every other module is loaded from these when it is first used."""

_PACKAGES_SIZE = "1G"
"""Of the sparse disk: at most."""

_KEPT = 7 * 24 * 3600
"""Seconds that an image is kept unused, at least."""

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def say(text: str) -> None:
    """Tell the one who waits."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@dataclass(frozen=True, slots=True)
class Image:
    """The files that a machine is given."""

    kernel: Path
    initrd: Path
    packages: Path
    user_mode: Path | None
    """The kernel that is a program."""


def image() -> Image:
    """Return the guest's files; build them first if the cache does not hold them."""
    cache = _cache()
    with open(cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever comes second waits, and finds them
        place = cache / _key()
        if not place.exists():
            _check_tools()
            with tempfile.TemporaryDirectory(prefix="new-", dir=cache) as work:
                _Builder(Path(work), cache).build()
                (Path(work) / "image").rename(place)
            _forget_old(cache)
        os.utime(place)
    user_mode = place / "linux.uml"
    return Image(
        place / "vmlinuz", place / "initrd", place / "packages.ext4", user_mode if user_mode.exists() else None
    )


def _cache() -> Path:
    chosen = os.environ.get("LAYERFS_GUEST")
    path = Path(chosen) if chosen else debian.cache_directory() / "guest"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _key() -> str:
    recipe = hashlib.sha256(Path(__file__).read_bytes() + (HERE / "init").read_bytes())
    return f"image-{recipe.hexdigest()[:16]}"


def _forget_old(cache: Path) -> None:
    """Remove what nobody used for a while; another checkout may have a recipe of its own."""
    for path in cache.glob("image-*"):
        if path.stat().st_mtime < time.time() - _KEPT:
            shutil.rmtree(path, ignore_errors=True)


def _check_tools() -> None:
    if os.geteuid() != 0:
        raise Unavailable("the guest is built and run by root only: it is given the host's files")
    missing = [package for tool, package in _TOOLS.items() if not shutil.which(tool, path=_PATH)]
    if missing:
        raise Unavailable(f"building the guest takes {', '.join(missing)}: apt-get install {' '.join(missing)}")


class _Builder:
    """Build the guest's files in ``work/image``; ``cache`` keeps the compiled modules."""

    def __init__(self, work: Path, cache: Path) -> None:
        self._work = work
        self._cache = cache
        self._root = work / "packages"
        self._apt = work / "apt"

    def build(self) -> None:
        """Do every step; leave the finished files in ``work/image``."""
        target = self._work / "image"
        target.mkdir()
        say("fetching Debian's packages")
        release = self._fetch()
        self._unpack()
        modules = self._modules(release)
        extra = self._root / "usr/lib/modules" / release / "extra"
        extra.mkdir()
        _run("tar", "-C", extra, "-xzf", modules)
        self._slim(release)
        _run("depmod", "-b", self._root, release)
        early: dict[str, Sequence[str]] = {release: _EARLY_MODULES}
        if user_mode := self._user_mode(target / "linux.uml"):
            early[user_mode] = _EARLY_MODULES_OF_USER_MODE
        say("making the initrd and the disk of packages")
        self._initrd(early, target / "initrd")
        shutil.copyfile(self._root / "boot" / f"vmlinuz-{release}", target / "vmlinuz")
        shutil.rmtree(self._root / "boot")
        options = ("-q", "-d", self._root, "-O", "^has_journal", "-m", "0")
        _run("mkfs.ext4", *options, target / "packages.ext4", _PACKAGES_SIZE)

    def _fetch(self) -> str:
        """Download the packages by an apt that leaves the host's lists alone; return the kernel's release."""
        for directory in ("lists/partial", "cache/archives/partial", "packages"):
            (self._apt / directory).mkdir(parents=True)
        signed = f"deb [signed-by={_KEYRING}]" if _KEYRING.exists() else "deb"
        sources = [line.replace("deb", signed, 1) + " contrib" for line in debian.host_sources().splitlines()]
        (self._apt / "sources.list").write_text("\n".join(sources) + "\n", encoding="utf-8")
        self._apt_get("apt-get", "-qq", "update")
        (kernel,) = self._depends(_KERNEL, "linux-image-")
        release = kernel.removeprefix("linux-image-")
        headers = f"linux-headers-{release}"
        building = (headers, *self._depends(headers, "linux-"), "zfs-dkms")
        others = [_USER_MODE] if self._apt_get("apt-cache", "search", "--names-only", f"^{_USER_MODE}$") else []
        self._apt_get("apt-get", "-qq", "download", kernel, *_PACKAGES, *building, *others)
        return release

    def _depends(self, package: str, prefix: str) -> list[str]:
        lines = self._apt_get("apt-cache", "depends", package).splitlines()
        return [line.split()[-1] for line in lines if f"Depends: {prefix}" in line]

    def _apt_get(self, *words: str) -> str:
        places = {
            "Dir::Etc::SourceList": "sources.list",
            "Dir::Etc::SourceParts": "none",
            "Dir::State::Lists": "lists",
            "Dir::Cache": "cache",
        }
        options = [f"--option={name}={self._apt / place}" for name, place in places.items()]
        return _run(*words, *options, "--option=APT::Sandbox::User=root", cwd=self._apt / "packages")

    def _unpack(self) -> None:
        """Unpack the packages where /bin and /lib are links, as on every host of this release."""
        for name in ("bin", "sbin", "lib", "lib64"):
            (self._root / "usr" / name).mkdir(parents=True)
            (self._root / name).symlink_to(f"usr/{name}")
        for package in sorted((self._apt / "packages").glob("*.deb")):
            with subprocess.Popen(("dpkg-deb", "--fsys-tarfile", package), stdout=subprocess.PIPE) as archive:
                _run("tar", "-C", self._root, "-x", "--keep-directory-symlink", stdin=archive.stdout)

    def _modules(self, release: str) -> Path:
        """Return the archive of ZFS's modules for a kernel, compiling them if the cache does not hold them."""
        source = next((self._root / "usr/src").glob("zfs-*"))
        package = next((self._apt / "packages").glob("zfs-dkms_*")).name.split("_")[1].replace("%3a", ":")
        archive = self._cache / f"zfs-{package}-{release}.tar.gz"
        if archive.exists():
            return archive
        say(f"compiling ZFS {package} for Linux {release}, some five minutes")
        headers = self._root / "usr/src" / f"linux-headers-{release}"
        common = headers.with_name(f"linux-headers-{release.removesuffix('-cloud-amd64')}-common")
        # Debian's headers expect to be installed; this is the one place that says where.
        (headers / "Makefile").write_text(f"include {common}/Makefile\n", encoding="ascii")
        flags = ("--with-config=kernel", f"--with-linux={common}", f"--with-linux-obj={headers}")
        _run("./configure", "-q", *flags, cwd=source)
        _run("make", "-s", "-C", "module", f"-j{os.cpu_count()}", cwd=source)
        made = self._work / "modules"
        made.mkdir()
        for module in source.glob("module/*/*.ko"):
            _run("strip", "--strip-debug", "-o", made / module.name, module)
        _run("tar", "-C", made, "-czf", self._work / "modules.tar.gz", ".")
        os.replace(self._work / "modules.tar.gz", archive)
        return archive

    def _user_mode(self, target: Path) -> str | None:
        """Take the kernel that is a program, and its modules to where modprobe looks; return its release."""
        kernel = self._root / "usr/bin/linux.uml"
        if not kernel.exists():
            return None
        kernel.rename(target)
        (modules,) = (self._root / "usr/lib/uml/modules").iterdir()
        modules.rename(self._root / "usr/lib/modules" / modules.name)
        _run("depmod", "-b", self._root, modules.name)
        return modules.name

    def _slim(self, release: str) -> None:
        """Remove what was for compiling, and documents."""
        for path in ("usr/src", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/include"):
            shutil.rmtree(self._root / path, ignore_errors=True)
        for name in ("build", "source"):
            (self._root / "usr/lib/modules" / release / name).unlink(missing_ok=True)

    def _initrd(self, early: Mapping[str, Sequence[str]], target: Path) -> None:
        """Pack busybox, `init` and, for each release of a kernel, the modules that this loads."""
        root = self._work / "initrd"
        for name in ("bin", "proc", "sys", "dev"):
            (root / name).mkdir(parents=True)
        busybox = shutil.which("busybox")
        assert busybox is not None
        shutil.copy(busybox, root / "bin/busybox")
        shutil.copy(HERE / "init", root / "init")
        for release, modules in early.items():
            self._early(release, modules, root)
        names = "\0".join(str(path.relative_to(root)) for path in (root, *sorted(root.rglob("*"))))
        with _input(names) as listed:
            _run("cpio", "--quiet", "--null", "--create", "--format=newc", "--file", target, cwd=root, stdin=listed)

    def _early(self, release: str, modules: Sequence[str], root: Path) -> None:
        tree = Path("lib/modules", release)
        (root / tree).mkdir(parents=True)
        for index in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            shutil.copy(self._root / tree / index, root / tree / index)
        shown = _run("modprobe", "-d", self._root, "-S", release, "-a", "--show-depends", *modules)
        for line in shown.splitlines():
            if line.startswith("insmod "):
                module = Path(line.split()[1]).relative_to(self._root)
                (root / module).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self._root / module, root / module)
        _run("depmod", "-b", root, release)
        (root / tree / "early").write_text(" ".join(modules), encoding="ascii")


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@contextmanager
def _input(text: str) -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        yield file.fileno()


def _run(*words: str | Path, cwd: Path | None = None, stdin: IO[bytes] | int | None = subprocess.DEVNULL) -> str:
    environment = {**os.environ, "PATH": _PATH, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            words, check=True, cwd=cwd, stdin=stdin, capture_output=True, text=True, errors="replace", env=environment
        )
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or "").strip()[-1500:]
        raise Unavailable(f"the guest cannot be built: `{' '.join(map(str, words))[:200]}` said: {said}") from error
    return done.stdout
