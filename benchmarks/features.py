"""What each feature costs: Blackhole as it is by default against itself with something more or less.

Each has a race of its own, of two, so that what is compared has run one right after the other. The first
runs against its like: what its row shows is how far two turns of the same differ here and now.

For what there is no switch, lines are taken out of a copy of the package. Each has to be found as it stands
here, or the row fails: whoever changes such a line changes it here too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.failure import Failure
from benchmarks.machine import ROOT
from benchmarks.plan import Plan, failing
from benchmarks.server import Server, Site, blackhole
from benchmarks.table import Row, Table
from benchmarks.turns import LOADS, Contestant, compete

RULE = """
[[rule]]
phase = "RCPT"
recipient = "{recipient}"
reply = "{reply}"
"""

Cut = tuple[str, str, str]
"""A file of the package, text that occurs in it once, and what stands there in the copy."""

STATISTICS: Sequence[Cut] = (
    (
        "net/connection.py",
        """\
            cell = session.single_event
            if session.counted_events or not cell:
                self._tell()
            else:
                self.counters[cell] += 1
""",
        "",
    ),
    (
        "net/connection.py",
        """\
            try:
                data = yield self._answer
            except StreamClosedError:
                self._take_back()
                raise
            if data is None:
                yield from self._push(self._take_back()).__await__()
""",
        """\
            data = yield self._answer
            if data is None:
                yield from self._push([]).__await__()
""",
    ),
    (
        "net/connection.py",
        """\
        self._tell()
        try:
            sent = self.stream.send(out)
        except StreamClosedError:
            self._take_back()
            raise
        return [] if sent else self._take_back()
""",
        """\
        return [] if self.stream.send(out) else [self.session.single_event]
""",
    ),
    (
        "net/connection.py",
        """\
            if self.session.counted_events or not self.session.left:
                self._settle()
""",
        "",
    ),
    ("net/connection.py", "            server.counters[RECEIVED] += fresh\n", ""),
    ("smtp/session.py", "            self.cell = self.engine.greeted\n", ""),
    ("smtp/session.py", "        self.cell = entry.base + answer.code\n", ""),
    (
        "smtp/session.py",
        "        self.said += (mail.base + sender.code, *taken, last.base + start.code)\n",
        "",
    ),
    ("smtp/session.py", "        self.engine.sizes.append(self.octets)\n", ""),
    ("net/server.py", "        self.counters[self.number] += 1\n        self.counters[OPEN] += 1\n", ""),
    ("net/server.py", "        self.counters[OPEN] -= 1\n", ""),
    ("net/server.py", "        self.counters[RECEIVED] += client.heard - client.counted\n", ""),
    ("net/server.py", "        self.sent.append(client.session.messages)\n", ""),
    ("net/direct.py", "            if self._probes:\n                self.woke = monotonic_ns()\n", ""),
    (
        "net/direct.py",
        """\
                rounds = self._rounds
                self._due -= 1
                if self._due < 0:
                    self._plant(fd)
""",
        "                rounds = ROUNDS - 1\n",
    ),
)

SWEEP: Sequence[Cut] = (
    ("net/server.py", "        for client in list(self.connections):\n            client.sweep()\n", ""),
)

UNMET = "--client_connections 1000000 --client_connection_rate 1000000000 --max_messages 1000000000"
"""All is counted, and nobody comes near a limit."""


@dataclass(frozen=True)
class Feature:
    """One difference to Blackhole as it is by default."""

    name: str
    options: str = ""
    cuts: Sequence[Cut] = ()
    recipients: Sequence[str] = ()
    """A rule of a scenario for each of these globs; nobody writes to them."""
    reply: str = "550 5.1.1 No such user"
    """What they would say. Where one may refuse, it is watched what becomes of messages."""
    mute: bool = False
    """Its log goes to /dev/null."""

    def server(self, directory: Path) -> Server:
        """Raises Failure where the code is not as the cuts want it."""
        words = ["blackhole"]
        if self.cuts:
            words.append(f"checkout={copy(directory / 'cut', self.cuts)}")
        if self.recipients:
            scenario = directory / "rules.toml"
            rules = (RULE.format(recipient=glob, reply=self.reply) for glob in self.recipients)
            scenario.write_text("".join(rules))
            words.append(f"--scenario {scenario}")
        server = blackhole(" ".join([*words, self.options]))
        return replace(server, command=muted(server)) if self.mute else server


def muted(server: Server) -> Callable[[Site], list[str]]:
    """The command of a server whose standard error goes to /dev/null, which --log does not take."""

    def command(site: Site) -> list[str]:
        return ["sh", "-c", 'exec "$@" 2>/dev/null', "sh", *server.command(site)]

    return command


def copy(home: Path, cuts: Sequence[Cut]) -> Path:
    """A checkout of the package alone, with cuts."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(ROOT / "blackhole", home / "blackhole", ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, new in cuts:
        file = home / "blackhole" / name
        text = file.read_text()
        if text.count(old) != 1:
            first = old.strip().splitlines()[0]
            raise Failure(f"{name} has {text.count(old)} times, not once, what begins with `{first}`")
        file.write_text(text.replace(old, new))
    return home


DEFAULT = Feature("as it is")

FEATURES = (
    replace(DEFAULT, name="as it is, once more"),
    Feature("no statistics", cuts=STATISTICS),
    Feature("no sweep of idle clients", cuts=SWEEP),
    Feature("`--message_directives off`", "--message_directives off"),
    Feature("`--dashboard off`", "--dashboard off"),
    Feature("`--debug`, log to /dev/null", "--debug", mute=True),
    Feature("a rule at RCPT that never holds", recipients=["*@host0.invalid"]),
    Feature(
        "the same, and it would not refuse", recipients=["*@host0.invalid"], reply="250 2.1.5 Recipient ok"
    ),
    Feature("100 such rules", recipients=[f"*@host{number}.invalid" for number in range(100)]),
    Feature(
        "100 with globs open at both ends", recipients=[f"*@host{number}.invalid*" for number in range(100)]
    ),
    Feature("`--public`, and the sender is not trusted", f"--public --trusted none {UNMET}"),
)

CONTESTS = {"reused": "reused", "connection": "a connection each"}
"""Load -> how its columns begin."""

COLUMNS = {"feature": ("Blackhole", "")}
for shape, says in CONTESTS.items():
    COLUMNS |= {
        f"{shape}_cpu": (f"{says}: CPU µs/message", ",.1f"),
        f"{shape}_ratio": ("ratio", ".2f"),
        f"{shape}_range": ("least to most", ""),
    }


def measure(plan: Plan) -> Table:
    """The ratio is to Blackhole as it is by default."""
    table = Table("features", "What each feature costs", COLUMNS)
    loads = [load for load in LOADS if load.name in CONTESTS]
    for feature in FEATURES:
        row: Row = {"feature": feature.name}
        table.rows.append(row)
        with failing(row):
            pair = [which.server(plan.directory) for which in (DEFAULT, feature)]
            for load in loads:
                entries = [Contestant(server.name, server, load.send, load.warm) for server in pair]
                default, other = compete(plan, entries)
                for had in (default, other):
                    if "failure" in had:
                        raise Failure(had["failure"])
                row |= {f"{load.name}_{key}": value for key, value in other.items() if key != "server"}
                row[f"{load.name}_default_cpus"] = default["cpus"]
    table.note = "The ratio is to Blackhole as it is by default. The first row compares it with itself."
    return table
