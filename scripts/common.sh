# Set up what layerfs needs: sourced by scripts/demo, scripts/test and .ci/run, never run by itself.
#
# Everything here may be done again: what is there already is not touched, and a second run needs no network.
# LAYERFS_VENV puts the virtual environment elsewhere; PYTHON names the interpreter to try first.
# shellcheck shell=bash
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${LAYERFS_VENV:-$repository/.venv}

# Debian and Ubuntu names. Building btrfsutil takes a compiler and three headers; newuidmap comes from uidmap.
python_packages=(python3 python3-venv ca-certificates)
runtime_packages=(python3-dev gcc libc6-dev libbtrfsutil-dev btrfs-progs e2fsprogs uidmap busybox-static)
test_packages=(runc docker-registry mount xfsprogs skopeo umoci mmdebstrap attr acl fuse3 libfuse2 zstd git stress-ng util-linux procps
    containerd golang-go golang-github-containerd-containerd-dev chromium-headless-shell)
# What runs the guest of the tests (tests/guest), and builds it.
guest_packages=(qemu-system-x86 kmod cpio make)

say() { printf '%s\n' "$*" >&2; }
title() { if [ -t 2 ]; then printf '\n\033[1m== %s\033[0m\n' "$*" >&2; else printf '\n== %s\n' "$*" >&2; fi; }
die() { say "$0: $*"; exit 1; }
is_root() { [ "$(id -u)" = 0 ]; }

# Print the packages of the arguments that are not installed; nothing where dpkg is not the package manager.
missing_packages() {
    command -v dpkg-query >/dev/null || return 0
    local package
    for package; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s\n' "$package"
    done
}

# Install the packages of the arguments as root; as anybody else say what is missing. Never fails: what cannot be had
# shows up as a driver or a test that is not there, with its reason.
need_packages() {
    local missing
    mapfile -t missing < <(missing_packages "$@")
    [ "${#missing[@]}" -gt 0 ] || return 0
    if ! is_root; then
        say "not installed: ${missing[*]}"
        say "    some drivers and tests stay out without them; to have them: sudo apt-get install ${missing[*]}"
        return 0
    fi
    say "installing ${missing[*]}"
    apt_get update || say "the package lists could not be brought up to date; trying with those that are there"
    # One package that this release does not have must not keep the others out. Nothing of the user's is removed.
    apt_get install --no-install-recommends --no-remove "${missing[@]}" || {
        local package
        for package in "${missing[@]}"; do
            apt_get install --no-install-recommends --no-remove "$package" || say "could not install $package"
        done
    }
}

# Run apt-get quietly, and show what it said only when it fails.
apt_get() {
    local said
    said=$(DEBIAN_FRONTEND=noninteractive apt-get -y -qq -o=Dpkg::Use-Pty=0 "$@" </dev/null 2>&1) || {
        say "$said"
        return 1
    }
}

# Tell whether the interpreter $1 is 3.11 or later and complete (Debian ships venv's ensurepip as a package of its own).
is_usable() { "$1" -c 'import sys, ensurepip, sqlite3, ssl, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Tell whether an ordinary user can run it: the rootless tests of root drop to uid 65534, to whom a Python below /root
# (pyenv's usual place) is out of reach.
is_reachable() {
    ! is_root || [ -z "$(command -v setpriv)" ] \
        || setpriv --reuid=65534 --regid=65534 --clear-groups -- \
            sh -c 'test -r "$1" && cd "$2"' sh "$(interpreter_library "$1")" "$repository" 2>/dev/null
}
interpreter_library() { "$1" -c 'import os; print(os.__file__)'; }

# Print the first interpreter that will do, one that ordinary users reach before one that they do not. A name on PATH
# may be pyenv's shim, which fails for a version that is not the chosen one: so each is tried, not looked up.
find_python() {
    local candidate kind
    for kind in is_reachable true; do
        for candidate in ${PYTHON:+"$PYTHON"} python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11; do
            if is_usable "$candidate" && $kind "$candidate"; then
                "$candidate" -c 'import sys; print(sys.executable)'
                return 0
            fi
        done
    done
    return 1
}

# Make the virtual environment unless a working one is there.
make_venv() {
    if [ -x "$venv/bin/python" ] && is_usable "$venv/bin/python" && "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        return 0
    fi
    local python
    python=$(find_python) || { need_packages "${python_packages[@]}"; python=$(find_python); } \
        || die "no complete Python 3.11 or later is here: apt-get install python3 python3-venv (Debian 12, Ubuntu 24.04 or later)"
    say "making $venv with $("$python" --version) at $python"
    "$python" -m venv --clear "$venv"
}

pip() { "$venv/bin/python" -m pip --quiet --quiet --disable-pip-version-check --no-input "$@" </dev/null >&2; }

# Print what the environment must hold: as long as it is what the stamp says, nothing is installed again.
environment_stamp() {
    "$venv/bin/python" -c 'import sys; print(sys.version)'
    sha256sum <"$repository/pyproject.toml"
    printf '%s\n' "$repository" "$(btrfsutil_library)"
}

# Print the version of the libbtrfsutil that a module can be built against (1.2 on Debian 12, 1.3 on Ubuntu 24.04), or
# nothing where a header, the compiler or the library is missing.
btrfsutil_library() {
    local include
    include=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$include/Python.h" ] && command -v gcc >/dev/null || return 0
    printf '#include <btrfsutil.h>\nBTRFS_UTIL_VERSION_MAJOR BTRFS_UTIL_VERSION_MINOR\n' \
        | gcc -E -P - 2>/dev/null | awk 'NF == 2 && /^[0-9]+ [0-9]+$/ { print $1 "." $2 }'
}

# Install btrfsutil, which comes as source only. From 6.14 on it needs btrfs_util_subvolume_is_valid of libbtrfsutil 1.4,
# yet builds against older ones and fails when imported: so the version goes by the library, and the import decides.
install_btrfsutil() {
    local library version
    library=$(btrfsutil_library)
    if [ -z "$library" ]; then
        say "the btrfs driver stays out: building btrfsutil takes gcc, Python.h and btrfsutil.h" \
            "(apt-get install gcc python3-dev libbtrfsutil-dev)"
        return 0
    fi
    for version in '>=6.14' '>=6.10,<6.14'; do
        case $version:$library in '>=6.14:1.'[0-3]) continue ;; esac
        if pip install "btrfsutil$version" && "$venv/bin/python" -c 'import btrfsutil'; then return 0; fi
    done
    say "the btrfs driver stays out: no btrfsutil builds against libbtrfsutil $library"
}

# Install layerfs, editable, into the environment: `install_layerfs` what the command needs, `install_layerfs dev` also
# the tools of the tests, the linters and the documentation.
install_layerfs() {
    local stamp="$venv/layerfs-${1:-runtime}.stamp"
    make_venv
    if [ -e "$stamp" ] && [ "$(environment_stamp)" = "$(cat "$stamp")" ]; then return 0; fi
    say "installing layerfs${1:+ and its development tools} into $venv"
    "$venv/bin/python" -c 'import pip, sys; sys.exit(int(pip.__version__.split(".")[0]) < 26)' \
        || pip install --upgrade 'pip>=25.1'  # the first with --group
    (cd "$repository" && pip install ${1:+--group "$1"} --editable .)
    install_btrfsutil
    environment_stamp >"$stamp"
    # The larger set holds the smaller one.
    [ "${1:-}" != dev ] || cp "$stamp" "$venv/layerfs-runtime.stamp"
}
