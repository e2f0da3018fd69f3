"""What the service does, counted: calls by method and status, and the seconds that they took."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from layerfs.errors import LayerfsError
from layerfs.metrics import openmetrics
from layerfs.metrics.openmetrics import Family, MetricType, Sample
from layerfs.serve.grpc import Metadata, Method

_EVERY = 60.0
"""Seconds between two writings of the file: as often as Prometheus asks by default."""

_log = logging.getLogger(__name__)


class CallCounter:
    """Count the calls of methods; safe for many threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._calls: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[str, float] = {}

    def counted(self, methods: Mapping[bytes, Method]) -> Mapping[bytes, Method]:
        """Return methods that do the same and are counted."""
        return {path: self._counting(path.decode().rpartition("/")[2], method) for path, method in methods.items()}

    def families(self) -> Sequence[Family]:
        """Return what was counted until now."""
        with self._guard:
            calls, seconds = sorted(self._calls.items()), sorted(self._seconds.items())
        return (
            Family(
                "layerfs_serve_calls",
                MetricType.COUNTER,
                "Calls of containerd's snapshots service since it was started, by method and gRPC status.",
                [Sample(count, (("method", method), ("status", status))) for (method, status), count in calls],
            ),
            Family(
                "layerfs_serve_call_seconds",
                MetricType.COUNTER,
                "Seconds that these calls took, added up.",
                [Sample(taken, (("method", method),)) for method, taken in seconds],
                "seconds",
            ),
        )

    def _counting(self, name: str, method: Method) -> Method:
        def call(data: bytes, metadata: Metadata) -> Iterator[bytes]:
            start, status = self._clock(), "INTERNAL"
            try:
                yield from method(data, metadata)
                status = "OK"
            except LayerfsError as error:
                status = error.grpc_code
                raise
            except GeneratorExit:  # the client wanted no more of a list
                status = "CANCELLED"
                raise
            finally:
                with self._guard:
                    self._calls[name, status] += 1
                    self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - start

        return call


@contextmanager
def kept_up(path: Path, measure: Callable[[], Iterable[Family]], *, every: float = _EVERY) -> Iterator[None]:
    """Write metrics to a file now, every so many seconds while the block runs, and at its end.

    The first time raises what is wrong with the file; later, a disk that is full must not end the service.
    """
    openmetrics.write(measure(), path)
    stopping = threading.Event()

    def work() -> None:
        while not stopping.wait(every):
            _write(path, measure)

    thread = threading.Thread(target=work, name="layerfs-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        _write(path, measure)


def _write(path: Path, measure: Callable[[], Iterable[Family]]) -> None:
    try:
        openmetrics.write(measure(), path)
    except LayerfsError as error:
        _log.warning("no metrics this time: %s", error)
