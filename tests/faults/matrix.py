"""A fault at every call of an operation, and what must hold of the store afterwards."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from layerfs import LayerfsError, NoSpace, Store
from layerfs.metadata.reserve import FULL
from tests.faults import interception
from tests.faults.interception import Fault, Outcome
from tests.faults.operations import Operation, Scene, describe
from tests.support import invariants

State = dict[str, str]
"""What a store shows, as `describe` has it."""


@dataclass(slots=True)
class Row:
    """What one operation was put through: its calls by name, and the faults that hit it."""

    operation: str
    calls: Counter[str] = field(default_factory=Counter[str])
    faults: int = 0
    failures: list[str] = field(default_factory=list[str])


class Matrix:
    """The operations of one driver, each between states that a run without faults shows."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def run(self, operation: Operation, faults: Iterator[Fault]) -> Row:
        """Let each fault hit the operation, checking the store after each; stop when they hit nothing any more."""
        calls = interception.run(lambda: self._act(operation)) if self._prepare(operation) else Outcome()
        assert calls.finished, f"{operation.name} ended without a word"
        assert calls.error is None, f"{operation.name} fails by itself: {calls.error}\n{calls.trace}"
        states = self._states(operation)
        row = Row(operation.name, Counter(calls.calls))
        for fault in faults:
            if fault.at >= len(calls.calls):
                break
            self._prepare(operation)
            try:
                outcome = interception.run(lambda: self._act(operation), fault)
            except (AssertionError, TimeoutError):  # it raised what is none of ours, or did not end
                row.failures.append(_told(operation, self._scene.driver, fault, Outcome()))
                break
            if outcome.hit is None:  # threads make the number of calls vary a little
                continue
            row.faults += 1
            try:
                self._check(operation, fault, outcome, states)
            except (AssertionError, LayerfsError, OSError):
                row.failures.append(_told(operation, self._scene.driver, fault, outcome))
                break  # what was lost would be missed again and again
        return row

    def _prepare(self, operation: Operation) -> bool:
        with self._scene.open() as store:
            operation.prepare(self._scene, store)
        return True

    def _act(self, operation: Operation) -> None:
        with self._scene.open() as store:
            operation.act(self._scene, store)

    def _states(self, operation: Operation) -> list[tuple[State, State]]:
        """Return what a store may show when a fault comes before the end, each with what the operation then makes."""
        steps = [_nothing] if operation.first_step is None else [_nothing, operation.first_step]
        states: list[tuple[State, State]] = []
        for step in steps:
            self._prepare(operation)
            with self._opened(operation) as stores:
                step(self._scene, stores[0])
                before = _describe(stores)
                operation.act(self._scene, stores[0])
                states.append((before, _describe(stores)))
        return states

    @contextmanager
    def _opened(self, operation: Operation) -> Iterator[tuple[Store, ...]]:
        """Open the store, and the one beside it where the operation changes that, too."""
        scenes = [self._scene, self._scene.beside()] if operation.beside else [self._scene]
        with ExitStack() as stack:
            yield tuple(stack.enter_context(scene.open()) for scene in scenes)

    def _check(
        self, operation: Operation, fault: Fault, outcome: Outcome, states: Sequence[tuple[State, State]]
    ) -> None:
        if outcome.error is not None and fault.error is not None and fault.error in FULL:
            assert isinstance(outcome.error, NoSpace), f"a full disk is told as {outcome.error!r}"
            assert outcome.error.hint
        with self._opened(operation) as stores:
            for store in stores:
                invariants.unmount_all(store)
                invariants.check_store(store)
            found = _describe(stores)
            done = states[0][1]
            if found != done:
                assert outcome.error or not outcome.finished, "it said that it was done"
                again = [after for before, after in states if before == found]
                assert again, f"a state between: {_difference(found, *states[0])}"
                operation.act(self._scene, stores[0])
                assert _describe(stores) in again
            for store in stores:
                _check_nothing_left(store)


def _describe(stores: Sequence[Store]) -> State:
    """Return what the stores show, all together."""
    return {f"{what} in {store.path.name}": shown for store in stores for what, shown in describe(store).items()}


def _nothing(_: Scene, __: Store) -> None:
    return


def _difference(found: State, before: State, after: State) -> str:
    return "; ".join(
        f"{key}: {found.get(key)}, not {before.get(key)} nor {after.get(key)}"
        for key in sorted({*found, *before, *after})
        if found.get(key) not in (before.get(key), after.get(key)) or before.get(key) != after.get(key)
    )


def _told(operation: Operation, driver: str, fault: Fault, outcome: Outcome) -> str:
    said = f"it said {outcome.error!r} ({outcome.error.hint})\n{outcome.trace}" if outcome.error else "it said nothing"
    hit = f"{operation.name} on {driver}: {fault} hit {outcome.hit or 'a call'} after {outcome.calls[-6:-1]}"
    return f"{hit}; {said}\n{traceback.format_exc()}"


def _check_nothing_left(store: Store) -> None:
    store.prune(store.plan_prune())
    invariants.check_store(store)
    assert store.plan_prune().items == ()
    assert list((store.path / "blobs/ingest").iterdir()) == []
    assert store.check() == ()


def every(error: int | None = None, *, lasting: bool = False, first: int = 0, step: int = 1) -> Iterator[Fault]:
    """Yield a fault for every call, or for every ``step``-th one from the ``first``."""
    number = first
    while True:
        yield Fault(number, error, lasting=lasting)
        number += step
