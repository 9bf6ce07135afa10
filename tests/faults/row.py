"""A row: a fault, the goal that is to be reached in spite of it, and the trial that measures it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.program import ROOT, environment


class Figure(NamedTuple):
    """One thing that was measured."""

    name: str
    value: float
    goal: float
    bound: float
    """What a test may ask for however loaded the machine is: the goal of counts, far beyond that of times."""
    unit: str = ""
    least: bool = False
    """The goal is to be exceeded, not to be stayed below."""

    @property
    def reached(self) -> bool:
        return self._within(self.goal)

    @property
    def sound(self) -> bool:
        return self._within(self.bound)

    def _within(self, limit: float) -> bool:
        return self.value >= limit if self.least else self.value <= limit

    def __str__(self) -> str:
        """As in a table: `accepts again after 0.14 s (<= 1)`; that 0 of something were wanted is not said."""
        value = f"{self.value:.3g}" if self.value % 1 and abs(self.value) < 1000 else f"{self.value:,.0f}"
        unit = f" {self.unit}" if self.unit else ""
        wanted = "" if self.value == self.goal else f" ({'>=' if self.least else '<='} {self.goal:g})"
        return f"{self.name} {value}{unit}{wanted}"


class Trial:
    """What a measurement is given: a folder of its own, how far to go, and where to put its figures."""

    def __init__(self, folder: Path, full: bool, whole: bool = False) -> None:
        self.folder = folder
        self.full = full
        """The size that the goal names, or as near as a run of minutes allows; else one of seconds."""
        self.whole = whole
        """The size that the goal names, however long that takes."""
        self.figures: list[Figure] = []
        self.notes: list[str] = []

    def count(
        self, name: str, value: float, goal: float = 0, *, least: bool = False, bound: float | None = None
    ) -> None:
        """A figure that no load on the machine excuses, unless there is a `bound` of its own."""
        self.figures.append(Figure(name, value, goal, goal if bound is None else bound, least=least))

    def time(self, name: str, value: float, goal: float, bound: float, unit: str = "s") -> None:
        """A figure that a loaded machine makes worse."""
        self.figures.append(Figure(name, value, goal, bound, unit))

    def size(self, name: str, value: float, goal: float, bound: float, unit: str = "KiB") -> None:
        self.figures.append(Figure(name, value, goal, bound, unit))

    def rate(self, name: str, value: float, goal: float, bound: float, unit: str) -> None:
        """A figure that is to be as large as possible."""
        self.figures.append(Figure(name, value, goal, bound, unit, least=True))

    def note(self, text: str) -> None:
        """What a reader of the figures has to know."""
        self.notes.append(text)

    def tests(self, *names: str) -> None:
        """Have pytest decide: `names` are files, or tests in them."""
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                *(f"tests/{name}" for name in names),
            ],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        last = (done.stdout.strip().splitlines() or ["nothing"])[-1]
        self.count("failed runs of pytest", int(done.returncode != 0))
        self.note(last)


class Row(NamedTuple):
    """A row of the table."""

    id: str
    fault: str
    goal: str
    measure: Callable[[Trial], None]
    quick: bool
    """The small trial takes less than five seconds, so `make test` has it too."""
    root: bool
    """Only root can measure it."""

    @property
    def how(self) -> str:
        return " ".join((self.measure.__doc__ or "").split())


Measure = Callable[[Trial], None]
ROWS: dict[str, Row] = {}
"""By id. Filled as the modules with the trials are imported."""


def row(
    name: str, fault: str, goal: str, quick: bool = True, root: bool = False
) -> Callable[[Measure], Measure]:
    """Make a row of a function."""

    def add(measure: Measure) -> Measure:
        ROWS[name] = Row(name, fault, goal, measure, quick, root)
        return measure

    return add


def table() -> dict[str, Row]:
    """All rows by id."""
    from tests.faults import load, processes, protocol  # noqa: F401 - each adds its own

    return ROWS
