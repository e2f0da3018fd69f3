"""Containers by an OCI runtime: bundles of clones (config.json and rootfs), and runc or crun to run them."""

from __future__ import annotations

from layerfs.runtime.bundle import Bundle, bundled, write_bundle
from layerfs.runtime.container import Bind, Container, Limits, Network
from layerfs.runtime.tool import Runtime, find_runtime

__all__ = [
    "Bind",
    "Bundle",
    "Container",
    "Limits",
    "Network",
    "Runtime",
    "bundled",
    "find_runtime",
    "write_bundle",
]
