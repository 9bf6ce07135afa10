"""Comparisons: servers take turns under a load (A B A B ...), so that noise of the machine affects all
alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from benchmarks import machine, process, sender
from benchmarks.plan import Plan, record_failure
from benchmarks.sender import Sender
from benchmarks.server import Running, Server, running_server
from benchmarks.table import Goal, Row, Table

MAX_MESSAGES = 300_000
"""Largest number of messages in a turn."""


@dataclass(frozen=True)
class Load:
    """One way to send messages."""

    name: str
    title: str
    send: Sender
    warm: int
    """Messages before the first turn; their cost determines the number of messages of a turn."""
    goal: float | None = None
    """Upper limit of Blackhole's CPU time as a ratio to smtp-sink's."""
    tls: str = ""


SOURCE = sender.smtp_source
LOADS = (
    Load("connection", "A connection per message (`smtp-source -s 50`)", SOURCE("-s", "50"), 300, 1.0),
    Load("reused", "Reused connections (`-s 50 -d`)", SOURCE("-s", "50", "-d"), 500, 1.0),
    Load("10k", "10 KiB, reused (`-s 20 -d -l 10240`)", SOURCE("-s", "20", "-d", "-l", "10240"), 200, 0.6),
    Load("1m", "1 MiB, reused (`-s 10 -d -l 1048576`)", SOURCE("-s", "10", "-d", "-l", "1048576"), 10, 0.2),
    Load(
        "pipelined",
        "Pipelined groups (MAIL, RCPT x10, DATA in one packet)",
        sender.bundled_sender("pipelined_sender"),
        300,
        0.5,
    ),
)
TLS_LOADS = (
    Load(
        "starttls",
        "A STARTTLS connection per message",
        sender.bundled_sender("tls_sender", "starttls"),
        50,
        tls="starttls",
    ),
    Load(
        "tls",
        "An implicit TLS connection per message",
        sender.bundled_sender("tls_sender", "implicit"),
        50,
        tls="implicit",
    ),
)


@dataclass(frozen=True)
class Turn:
    """The result of one turn of a server."""

    messages: int
    seconds: float
    cpu: process.Cpu

    @property
    def cost(self) -> float:
        """CPU seconds per message."""
        return self.cpu.total / self.messages


def run_load(running: Running, send: Sender, messages: int) -> Turn:
    """Send messages to a running server, and return the result of the turn."""
    before = running.cpu()
    seconds, _ = sender.run(send(running.port, messages))
    return Turn(messages, seconds, running.cpu_since(before))


@dataclass
class Candidate:
    """A server in one configuration, and the results of its turns."""

    name: str
    server: Server
    send: Sender
    warm: int
    tls: str = ""
    workers: int = 1
    cores: list[int] = field(default_factory=lambda: machine.SERVER_CORES)
    turns: list[Turn] = field(default_factory=list)


def compare(plan: Plan, candidates: Sequence[Candidate]) -> list[Row]:
    """Run all servers and give each a turn in every round. The ratios are to the first server."""
    rows: list[Row] = [{"server": candidate.name} for candidate in candidates]
    running_candidates: list[tuple[Candidate, Row, Running, int]] = []
    with ExitStack() as stack:
        for candidate, row in zip(candidates, rows, strict=True):
            with record_failure(row):
                running = stack.enter_context(
                    running_server(
                        candidate.server,
                        plan.directory,
                        candidate.workers,
                        candidate.tls,
                        candidate.cores,
                    )
                )
                if plan.warm:
                    run_load(running, candidate.send, plan.warm)
                warm = run_load(running, candidate.send, candidate.warm)
                # A server that mostly waits would take too long to use up its CPU time.
                each = max(warm.cost, warm.seconds / warm.messages / 4)
                messages = min(MAX_MESSAGES, max(candidate.warm, round(plan.seconds / each)))
                running_candidates.append((candidate, row, running, messages))
        for _ in range(plan.rounds):
            for candidate, row, running, messages in running_candidates:
                if "failure" not in row:
                    with record_failure(row):
                        candidate.turns.append(run_load(running, candidate.send, messages))
        first = candidates[0].turns if candidates else []
        for candidate, row, running, messages in running_candidates:
            if "failure" not in row:
                with record_failure(row):
                    row |= summary(candidate.turns, first) | {
                        "messages": messages,
                        "peak": process.peak(running.pids()),
                    }
    return rows


def summary(turns: Sequence[Turn], first: Sequence[Turn]) -> Row:
    """Return medians over the rounds. Ratios are taken within a round, whose turns are close in time."""
    ratios = [mine.cost / other.cost for mine, other in zip(turns, first, strict=False)]
    return {
        "rate": median(turn.messages / turn.seconds for turn in turns),
        "cpu": median(turn.cost for turn in turns) * 1e6,
        "kernel": median(
            turn.cpu.system / max(turn.cpu.user + turn.cpu.system, process.TICK) for turn in turns
        ),
        "ratio": median(ratios) if ratios else None,
        "range": f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else None,
        "cpus": [round(turn.cost * 1e6, 2) for turn in turns],
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


COLUMNS = {
    "server": ("server", ""),
    "rate": ("messages/s", ",.0f"),
    "cpu": ("CPU µs/message", ",.1f"),
    "kernel": ("kernel", ".0%"),
    "ratio": ("ratio", ".2f"),
    "range": ("least to most", ""),
    "peak": ("peak KiB", ",d"),
}


def compare_servers(shape: Load) -> Callable[[Plan], Table]:
    """Return the measurement of a load on every server that supports it, smtp-sink first."""

    def measure(plan: Plan) -> Table:
        table = Table(shape.name, shape.title, COLUMNS)
        table.rows = compare(
            plan, [Candidate(server.name, server, shape.send, shape.warm) for server in plan.with_listener()]
        )
        if shape.goal and table.rows and table.rows[0]["server"] == "smtp-sink":
            add_goal(table, f"CPU, {shape.title}, ratio to smtp-sink", shape.goal)
        return table

    return measure


def compare_over_tls(shape: Load) -> Callable[[Plan], Table]:
    """Return the measurement of a load over TLS, compared with a handshake alone."""

    def measure(plan: Plan) -> Table:
        floor = [
            Candidate(
                server.name, server, sender.bundled_sender("tls_sender", "handshake"), shape.warm, "handshake"
            )
            for server in plan.with_listener("handshake")
        ]
        peers = [
            Candidate(server.name, server, shape.send, shape.warm, shape.tls)
            for server in plan.with_listener(shape.tls)
        ]
        note = "openssl s_server performs the handshake only, without SMTP."
        return Table(shape.name, shape.title, COLUMNS, compare(plan, floor + peers), note=note)

    return measure


def compare_workers(shape: Load) -> Callable[[Plan], Table]:
    """Return the measurement of the cost of a message with one, two and four workers."""

    def measure(plan: Plan) -> Table:
        table = Table(f"workers-{shape.name}", f"Workers. {shape.title}", COLUMNS)
        for server in (server for server in plan.with_listener() if server.is_blackhole or server.floor):
            entries = [
                Candidate(f"{server.name}, workers {n}", server, shape.send, shape.warm, "", n, machine.CORES)
                for n in (1, 2, 4)
            ]
            table.rows += compare(plan, entries)
        for row in table.rows:
            if row["server"] in ("blackhole, workers 2", "blackhole, workers 4") and row.get("ratio"):
                table.goals.append(
                    Goal(f"CPU, {row['server']}, ratio to one worker ({shape.name})", 1.05, row["ratio"])
                )
        table.note = "The ratio is to one worker."
        return table

    return measure


def add_goal(table: Table, name: str, limit: float) -> None:
    """Add a goal for the ratio of Blackhole, if that was measured."""
    for row in table.rows:
        if row["server"] == "blackhole" and row.get("ratio") is not None:
            table.goals.append(Goal(name, limit, row["ratio"]))
