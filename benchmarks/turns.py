"""Load in turns: A B A B ..., so that whatever else the machine does falls on all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from benchmarks import machine, process, sender
from benchmarks.plan import Plan, failing
from benchmarks.sender import Sender
from benchmarks.server import Running, Server, started
from benchmarks.table import Goal, Row, Table

MOST = 300_000
"""Messages in one turn."""


@dataclass(frozen=True)
class Load:
    """One way to send messages."""

    name: str
    title: str
    send: Sender
    warm: int
    """Messages that go ahead of the first turn; what they cost tells how many a turn is to have."""
    goal: float | None = None
    """The most of smtp-sink's CPU time Blackhole may take."""
    tls: str = ""


SOURCE = sender.smtp_source
LOADS = (
    Load("connection", "A connection per message (`smtp-source -s 50`)", SOURCE("-s", "50"), 300, 1.0),
    Load("reused", "Reused connections (`-s 50 -d`)", SOURCE("-s", "50", "-d"), 500, 1.0),
    Load("10k", "10 KiB, reused (`-s 20 -d -l 10240`)", SOURCE("-s", "20", "-d", "-l", "10240"), 200, 0.6),
    Load("1m", "1 MiB, reused (`-s 10 -d -l 1048576`)", SOURCE("-s", "10", "-d", "-l", "1048576"), 10, 0.2),
    Load(
        "pipelined", "Pipelined groups (MAIL, RCPT x10, DATA in one packet)", sender.own("groups"), 300, 0.5
    ),
)
SECURED = (
    Load(
        "starttls",
        "A STARTTLS connection per message",
        sender.own("handshakes", "starttls"),
        50,
        tls="starttls",
    ),
    Load(
        "tls",
        "An implicit TLS connection per message",
        sender.own("handshakes", "implicit"),
        50,
        tls="implicit",
    ),
)


@dataclass(frozen=True)
class Turn:
    """One load on one server."""

    messages: int
    seconds: float
    cpu: process.Cpu

    @property
    def cost(self) -> float:
        """CPU seconds a message."""
        return self.cpu.total / self.messages


def turn(running: Running, send: Sender, messages: int) -> Turn:
    before = running.cpu()
    seconds, _ = sender.run(send(running.port, messages))
    return Turn(messages, seconds, running.cpu_since(before))


@dataclass
class Contestant:
    """A server in one configuration, and the turns it has had."""

    name: str
    server: Server
    send: Sender
    warm: int
    tls: str = ""
    workers: int = 1
    cores: list[int] = field(default_factory=lambda: machine.SERVER)
    turns: list[Turn] = field(default_factory=list)


def compete(plan: Plan, contestants: Sequence[Contestant]) -> list[Row]:
    """Start all, give each its turn in every round; the first is what the others are compared with."""
    rows: list[Row] = [{"server": contestant.name} for contestant in contestants]
    racing: list[tuple[Contestant, Row, Running, int]] = []
    with ExitStack() as stack:
        for contestant, row in zip(contestants, rows, strict=True):
            with failing(row):
                running = stack.enter_context(
                    started(
                        contestant.server,
                        plan.directory,
                        contestant.workers,
                        contestant.tls,
                        contestant.cores,
                    )
                )
                if plan.warm:
                    turn(running, contestant.send, plan.warm)
                warm = turn(running, contestant.send, contestant.warm)
                # A server that waits more than it works would take for ever to use its CPU time up.
                each = max(warm.cost, warm.seconds / warm.messages / 4)
                messages = min(MOST, max(contestant.warm, round(plan.seconds / each)))
                racing.append((contestant, row, running, messages))
        for _ in range(plan.rounds):
            for contestant, row, running, messages in racing:
                if "failure" not in row:
                    with failing(row):
                        contestant.turns.append(turn(running, contestant.send, messages))
        first = contestants[0].turns if contestants else []
        for contestant, row, running, messages in racing:
            if "failure" not in row:
                with failing(row):
                    row |= summary(contestant.turns, first) | {
                        "messages": messages,
                        "peak": process.peak(running.pids()),
                    }
    return rows


def summary(turns: Sequence[Turn], first: Sequence[Turn]) -> Row:
    """Medians over the rounds; the ratio is that of each round, since only those are near in time."""
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


def load(shape: Load) -> Callable[[Plan], Table]:
    """The measurement of one load on every server that takes it, smtp-sink first."""

    def measure(plan: Plan) -> Table:
        table = Table(shape.name, shape.title, COLUMNS)
        table.rows = compete(
            plan, [Contestant(server.name, server, shape.send, shape.warm) for server in plan.serving()]
        )
        if shape.goal and table.rows and table.rows[0]["server"] == "smtp-sink":
            goal(table, f"CPU, {shape.title}, ratio to smtp-sink", shape.goal)
        return table

    return measure


def secured(shape: Load) -> Callable[[Plan], Table]:
    """The measurement of one load over TLS, compared with a handshake that nothing comes behind."""

    def measure(plan: Plan) -> Table:
        floor = [
            Contestant(server.name, server, sender.own("handshakes", "handshake"), shape.warm, "handshake")
            for server in plan.serving("handshake")
        ]
        peers = [
            Contestant(server.name, server, shape.send, shape.warm, shape.tls)
            for server in plan.serving(shape.tls)
        ]
        note = "openssl s_server does the handshake alone: no SMTP, no message."
        return Table(shape.name, shape.title, COLUMNS, compete(plan, floor + peers), note=note)

    return measure


def workers(shape: Load) -> Callable[[Plan], Table]:
    """The measurement of what a message costs more when there are more workers."""

    def measure(plan: Plan) -> Table:
        table = Table(f"workers-{shape.name}", f"Workers. {shape.title}", COLUMNS)
        for server in (server for server in plan.serving() if server.ours or server.floor):
            entries = [
                Contestant(
                    f"{server.name}, workers {n}", server, shape.send, shape.warm, "", n, machine.CORES
                )
                for n in (1, 2, 4)
            ]
            table.rows += compete(plan, entries)
        for row in table.rows:
            if row["server"] in ("blackhole, workers 2", "blackhole, workers 4") and row.get("ratio"):
                table.goals.append(
                    Goal(f"CPU, {row['server']}, ratio to one worker ({shape.name})", 1.05, row["ratio"])
                )
        table.note = "The ratio is to one worker."
        return table

    return measure


def goal(table: Table, what: str, most: float) -> None:
    for row in table.rows:
        if row["server"] == "blackhole" and row.get("ratio") is not None:
            table.goals.append(Goal(what, most, row["ratio"]))
