"""How problems of a store are shown, by `layerfs check` and `layerfs repair` alike."""

from __future__ import annotations

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


def problem_title(problem: Problem) -> str:
    """Return what is wrong in one line."""
    name = short(problem.name) if problem.name.startswith("sha256:") else problem.name
    return printable(f"{name or 'store'}{': ' if problem.file else ''}{problem.file}: {problem.message}")


def problem_lines(problem: Problem) -> list[str]:
    """Return a problem for people."""
    hurts = ", ".join(problem.hurts) or ("nobody" if problem.name else "all of the store")
    lines = (problem_title(problem), f"  hurts: {hurts}", f"  hint: {problem.hint}")
    return [printable(line) for line in (lines if problem.hint else lines[:2])]
