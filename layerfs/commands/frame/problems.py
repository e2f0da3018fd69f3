"""How problems of a store are shown, by `layerfs check` and `layerfs repair` alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from layerfs.checking.problem import Problem
from layerfs.commands.frame.session import Json
from layerfs.commands.frame.text import printable
from layerfs.commands.frame.units import short


def problem_document(problem: Problem) -> dict[str, Json]:
    """Return a problem for ``--json``."""
    return {
        "name": problem.name,
        "kind": problem.kind,
        "file": problem.file,
        "message": problem.message,
        "hint": problem.hint,
        "hurts": list(problem.hurts),
    }


def problem_block(problems: Sequence[Problem], said: Sequence[str]) -> list[str]:
    """Return problems of one thing for people, its files below each other, and then what is to be said of all."""
    first = problems[0]
    name = short(first.name) if first.name.startswith("sha256:") else first.name or "store"
    lines = [f"{problem.file}{': ' if problem.file else ''}{problem.message}" for problem in problems]
    titles = [f"{name}: {lines[0]}"] if len(lines) == 1 else [f"{name}:", *(f"  {line}" for line in lines)]
    return [printable(line) for line in (*titles, *(f"  {line}" for line in said))]


def problem_lines(problems: Iterable[Problem]) -> list[str]:
    """Return all problems for people, a block for each thing that is wrong."""
    lines: list[str] = []
    for (name, hurts, hint), group in groupby(problems, lambda problem: (problem.name, problem.hurts, problem.hint)):
        whom = ", ".join(hurts) or ("nobody" if name else "all of the store")
        lines += problem_block(tuple(group), (f"hurts: {whom}", *((f"hint: {hint}",) if hint else ())))
    return lines
