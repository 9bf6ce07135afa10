"""The plan of a run: which servers, how long, and where its files are."""

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
    """What a run measures, and for how long."""

    servers: tuple[Server, ...]
    rounds: int
    seconds: float
    """Approximate CPU seconds of a turn, from which the number of messages follows."""
    quick: bool
    warm: int
    """Messages sent before the first turn, for interpreters that compile while they run."""
    directory: Path
    """The directory of this run, with the certificate, conf files and logs."""

    def with_listener(self, tls: str = "") -> list[Server]:
        """Return the servers that support a kind of listener."""
        return [server for server in self.servers if tls in server.tls]

    def smtp_servers(self) -> list[Server]:
        """Return the servers that accept mail, without the lower bounds."""
        return [server for server in self.with_listener() if not server.floor]

    def each(self, servers: Iterable[Server], measure: Callable[[Server], Row]) -> list[Row]:
        """Return a row for each server; a Failure is recorded in the row."""
        rows: list[Row] = []
        for server in servers:
            row: Row = {"server": server.name}
            with record_failure(row):
                row |= measure(server)
            rows.append(row)
        return rows


@contextmanager
def record_failure(row: Row) -> Iterator[None]:
    """Record a Failure of the block in the row."""
    try:
        yield
    except Failure as failure:
        row["failure"] = str(failure)
