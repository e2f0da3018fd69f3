"""A forked child ends, whatever the parent was doing."""

from __future__ import annotations

import gc
import os
import signal
import warnings

import zstandard

from layerfs.kernel.children import fork


def leave_threads_to_the_collector() -> None:
    """Leave a compressor, with its threads, in a reference cycle."""
    compressor = zstandard.ZstdCompressor(threads=2).compressobj()
    compressor.compress(bytes(4 << 20))
    cycle: list[object] = [compressor]
    cycle.append(cycle)


def test_a_child_does_not_wait_for_threads_of_its_parent() -> None:
    gc.collect()
    leave_threads_to_the_collector()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, for a fork beside threads
        child = fork()
    if child == 0:
        signal.alarm(30)
        gc.collect()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_parent_goes_on_collecting() -> None:
    assert gc.isenabled()
    child = fork()
    if child == 0:
        os._exit(0 if gc.isenabled() else 1)
    assert gc.isenabled()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
