"""What systemd and containerd are told of the service, as files to be put in their places."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SOCKET = Path("/run/layerfs/layerfs.sock")
"""Where the service listens unless told otherwise."""

_SERVICE = """\
# /etc/systemd/system/layerfs.service
[Unit]
Description=layerfs, a snapshotter for containerd
Documentation=https://containerd.io/docs/
Before=containerd.service
Requires=layerfs.socket
After=local-fs.target layerfs.socket

[Service]
Type=notify
ExecStart={command}
# What serves a mount goes on when the service is stopped or started anew: containers are running on it.
KillMode=process
# Running calls are finished at a stop; deleting the files of a big snapshot takes its time.
TimeoutStopSec=120
Restart=on-failure
OOMScoreAdjust=-999
# Neither PrivateMounts= nor ProtectSystem=: its mounts must be those that containerd sees.

[Install]
WantedBy=multi-user.target
"""

_SOCKET = """\
# /etc/systemd/system/layerfs.socket
[Unit]
Description=layerfs, a snapshotter for containerd

[Socket]
ListenStream={socket}
SocketMode=0600

[Install]
WantedBy=sockets.target
"""

_CONTAINERD = """\
# /etc/containerd/config.toml
version = 2

[proxy_plugins.layerfs]
  type = "snapshot"
  address = "{socket}"

# For Kubernetes, too:
# [plugins."io.containerd.grpc.v1.cri".containerd]
#   snapshotter = "layerfs"
"""


def service(command: Sequence[str]) -> str:
    """Return the service unit that runs ``command``."""
    return _SERVICE.format(command=" ".join(map(_quoted, command)))


def socket(path: Path) -> str:
    """Return the socket unit that listens at ``path``."""
    return _SOCKET.format(socket=_escaped(str(path)))


def containerd(path: Path) -> str:
    """Return what containerd's configuration needs to find the service at ``path``."""
    address = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return _CONTAINERD.format(socket=address)


def _quoted(word: str) -> str:
    """Write a word as systemd.service(5) reads it back."""
    word = _escaped(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{word}"' if not word or any(letter.isspace() or letter in "\"'\\;" for letter in word) else word


def _escaped(word: str) -> str:
    """Hide the ``%`` of a word from systemd, which has names for what follows it."""
    return word.replace("%", "%%")
