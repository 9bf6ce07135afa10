"""The plan of a run: what is measured, how long, and where its files are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.failure import Failure
from benchmarks.server import Server
from benchmarks.table import Row


@dataclass(frozen=True)
class Plan:
    servers: tuple[Server, ...]
    rounds: int
    seconds: float
    """CPU seconds a server is given in one turn, about; the number of messages follows from it."""
    quick: bool
    warm: int
    """Messages that go ahead of a server's turns, for those that get faster with time."""
    directory: Path
    """For this run alone; holds certificate, conf files and logs."""

    def serving(self, tls: str = "") -> list[Server]:
        """The servers with such a kind of listener."""
        return [server for server in self.servers if tls in server.tls]

    def usable(self) -> list[Server]:
        """The servers one could send mail to; no floors."""
        return [server for server in self.serving() if not server.floor]

    def each(self, servers: Iterable[Server], measure: Callable[[Server], Row]) -> list[Row]:
        """One row a server; a server that cannot be measured gets a row that says why."""
        rows: list[Row] = []
        for server in servers:
            row: Row = {"server": server.name}
            with failing(row):
                row |= measure(server)
            rows.append(row)
        return rows


@contextmanager
def failing(row: Row) -> Iterator[None]:
    """Write a Failure into the row."""
    try:
        yield
    except Failure as failure:
        row["failure"] = str(failure)
