"""Work in child processes of a test, which may be killed."""

from __future__ import annotations

import os
from collections.abc import Callable

from layerfs.kernel.children import fork


def start(work: Callable[[], None]) -> int:
    """Run ``work`` in a child and return its process id; its exit status is 0 if the work came to its end."""
    child = fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child
