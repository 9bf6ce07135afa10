"""A fault: what is done to the program, the goal that it must reach, and how this is measured."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.program import ROOT, environment


class Figure(NamedTuple):
    """A measured number and its goal."""

    name: str
    value: float
    goal: float
    test_limit: float
    """The limit in `make test`: the goal itself for counts, a far larger one for times on a busy machine."""
    unit: str = ""
    at_least: bool = False
    """Whether the goal is a minimum; otherwise it is a maximum."""
    is_check: bool = False
    """Whether it is the answer to a question: 1 is yes."""

    @property
    def reaches_goal(self) -> bool:
        return self._is_within(self.goal)

    @property
    def is_plausible(self) -> bool:
        """Whether the number is within the limit of `make test`."""
        return self._is_within(self.test_limit)

    def _is_within(self, limit: float) -> bool:
        return self.value >= limit if self.at_least else self.value <= limit

    def __str__(self) -> str:
        """Return a text such as `time until it accepts again: 0.14 s (<= 1)`."""
        if self.is_check:
            return f"{self.name}: {'yes' if self.value else 'no'}"
        value = f"{self.value:.3g}" if self.value % 1 and abs(self.value) < 1000 else f"{self.value:,.0f}"
        unit = f" {self.unit}" if self.unit else ""
        goal = "" if self.value == self.goal else f" ({'>=' if self.at_least else '<='} {self.goal:g})"
        return f"{self.name}: {value}{unit}{goal}"


class Trial:
    """One measurement of a fault: its folder, its size, and the figures it collects."""

    def __init__(self, folder: Path, full: bool, whole: bool = False) -> None:
        self.folder = folder
        self.full = full
        """Use the size that the goal names, or the nearest that takes minutes. Otherwise it takes seconds."""
        self.whole = whole
        """Use the size that the goal names, even if it takes hours."""
        self.figures: list[Figure] = []
        self.notes: list[str] = []

    def count(
        self,
        name: str,
        value: float,
        goal: float = 0,
        *,
        at_least: bool = False,
        test_limit: float | None = None,
    ) -> None:
        """Add a count. A busy machine is no excuse for a wrong one, unless there is a `test_limit`."""
        limit = goal if test_limit is None else test_limit
        self.figures.append(Figure(name, value, goal, limit, at_least=at_least))

    def check(self, name: str, holds: bool) -> None:
        """Add the answer to a question, which must be yes."""
        self.figures.append(Figure(name, int(holds), 1, 1, at_least=True, is_check=True))

    def time(self, name: str, value: float, goal: float, test_limit: float, unit: str = "s") -> None:
        """Add a number that a busy machine makes larger."""
        self.figures.append(Figure(name, value, goal, test_limit, unit))

    def size(self, name: str, value: float, goal: float, test_limit: float, unit: str = "KiB") -> None:
        """Add an amount of memory or data."""
        self.figures.append(Figure(name, value, goal, test_limit, unit))

    def rate(self, name: str, value: float, goal: float, test_limit: float, unit: str) -> None:
        """Add a number that should be as large as possible."""
        self.figures.append(Figure(name, value, goal, test_limit, unit, at_least=True))

    def note(self, text: str) -> None:
        """Add what a reader needs to know about the figures."""
        self.notes.append(text)

    def pytest(self, *names: str) -> None:
        """Run tests, which are files or `file::test`, and count whether any failed."""
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                *(f"tests/{name}" for name in names),
            ],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        summary = (done.stdout.strip().splitlines() or ["no output"])[-1]
        self.count("failed runs of pytest", int(done.returncode != 0))
        self.note(summary)


class Fault(NamedTuple):
    """A row of the table of faults."""

    id: str
    fault: str
    """What is done."""
    goal: str
    measure: Callable[[Trial], None]
    quick: bool
    """The small trial takes less than five seconds, so `make test` includes it."""
    needs_root: bool

    @property
    def method(self) -> str:
        """How the fault is measured, as the docstring of `measure` says."""
        return " ".join((self.measure.__doc__ or "").split())


Measure = Callable[[Trial], None]
FAULTS: dict[str, Fault] = {}
"""The faults by id. The modules that measure them add them when they are imported."""


def fault(
    name: str, description: str, goal: str, quick: bool = True, needs_root: bool = False
) -> Callable[[Measure], Measure]:
    """Add a fault that the decorated function measures."""

    def add(measure: Measure) -> Measure:
        FAULTS[name] = Fault(name, description, goal, measure, quick, needs_root)
        return measure

    return add


def all_faults() -> dict[str, Fault]:
    """Return all faults by id."""
    from tests.faults import load, processes, protocol  # noqa: F401 - each adds its own

    return FAULTS
