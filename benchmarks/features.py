"""The cost of each feature: Blackhole with its defaults against itself with one thing changed.

Each feature is measured in a comparison of its own, of two servers that take turns. The first compares the
defaults with themselves: its range shows the noise of the machine. Only what an option, a scenario or the
variable BLACKHOLE_ACCELERATORS can switch is measured here; for anything else, compare two checkouts
(`--variant`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.comparison import LOADS, Candidate, compare
from benchmarks.failure import Failure
from benchmarks.plan import Plan, record_failure
from benchmarks.scenarios import USUAL
from benchmarks.server import Server, ServerSetup, blackhole
from benchmarks.table import Row, Table

ACCELERATORS: Final = ("fast_path", "direct", "selector")
"""Names that BLACKHOLE_ACCELERATORS takes, separated by commas; `off` means none."""

LIMITS_OUT_OF_REACH: Final = (
    "--client_connections 1000000 --client_connection_rate 1000000000 --max_messages 1000000000"
)
"""Limits that count every client and refuse none."""

THROTTLE: Final = """
[[rule]]
phase = "MAIL"
throttle = { messages = 1000000000, per = "1h" }
reply = "450 4.7.1 Slow down"
"""

RULE: Final = """
[[rule]]
phase = "RCPT"
recipient = "{recipient}"
reply = "{reply}"
"""


def never_matching(*recipients: str, reply: str = "550 5.1.1 No such user") -> str:
    """Return a scenario with a rule for each of these recipients, none of which the load has."""
    return "".join(RULE.format(recipient=recipient, reply=reply) for recipient in recipients)


@dataclass(frozen=True)
class Feature:
    """One difference from the defaults."""

    name: str
    options: str = ""
    scenario: str = ""
    """Text of a scenario file."""
    accelerators: str | None = None
    """Value of BLACKHOLE_ACCELERATORS; None leaves the variable unset."""
    discard_log: bool = False
    """Redirect standard error to /dev/null."""

    def server(self, directory: Path) -> Server:
        """Return the server; its scenario is written to `directory`."""
        words = ["blackhole"]
        if self.accelerators is not None:
            words.append(f"BLACKHOLE_ACCELERATORS={self.accelerators}")
        words.append(self.options)
        if self.scenario:
            file = directory / "rules.toml"
            file.write_text(self.scenario)
            words.append(f"--scenario {file}")
        server = blackhole(" ".join(words))
        return replace(server, command=without_stderr(server)) if self.discard_log else server


def without_stderr(server: Server) -> Callable[[ServerSetup], list[str]]:
    """Return the command of a server with standard error redirected to /dev/null."""

    def command(setup: ServerSetup) -> list[str]:
        return ["sh", "-c", 'exec "$@" 2>/dev/null', "sh", *server.command(setup)]

    return command


def all_but(accelerator: str) -> str:
    """Return the value of BLACKHOLE_ACCELERATORS that switches one accelerator off."""
    return ",".join(name for name in ACCELERATORS if name != accelerator)


DEFAULTS: Final = Feature("defaults")

FEATURES: Final[Sequence[Feature]] = (
    replace(DEFAULTS, name="defaults, compared with themselves"),
    *(Feature(f"without `{name}`", accelerators=all_but(name)) for name in ACCELERATORS),
    Feature("without accelerators", accelerators="off"),
    Feature("`--strict`", "--strict"),
    Feature("`--bare_newline count`", "--bare_newline count"),
    Feature("`--message_directives off`", "--message_directives off"),
    Feature("`--dashboard off`", "--dashboard off"),
    Feature("`--debug`, log to /dev/null", "--debug", discard_log=True),
    Feature("`--recent 1000`", "--recent 1000"),
    Feature("`--show-domains`", "--show-domains"),
    Feature("a rule at RCPT that never matches", scenario=never_matching("*@host0.invalid")),
    Feature(
        "a rule that never matches and would accept",
        scenario=never_matching("*@host0.invalid", reply="250 2.1.5 Recipient ok"),
    ),
    Feature(
        "100 rules that never match",
        scenario=never_matching(*(f"*@host{number}.invalid" for number in range(100))),
    ),
    Feature(
        "100 rules with globs open at both ends",
        scenario=never_matching(*(f"*@host{number}.invalid*" for number in range(100))),
    ),
    Feature("a throttle that nothing exceeds", scenario=THROTTLE),
    Feature("a usual scenario", scenario=USUAL),
    Feature("`--public`, untrusted sender", f"--public --trusted none {LIMITS_OUT_OF_REACH}"),
)

SHAPES: Final = {"reused": "reused", "connection": "a connection per message"}
"""Name of a load -> the beginning of its column headings."""

COLUMNS: Final = {"feature": ("Blackhole", "")} | {
    f"{shape}_{key}": (heading.format(title), form)
    for shape, title in SHAPES.items()
    for key, heading, form in (
        ("cpu", "{}: CPU µs/message", ",.1f"),
        ("ratio", "ratio", ".2f"),
        ("range", "least to most", ""),
    )
}


def measure(plan: Plan) -> Table:
    """Measure every feature. The ratios are to Blackhole with its defaults."""
    table = Table("features", "Cost of each feature", COLUMNS)
    for feature in FEATURES:
        row: Row = {"feature": feature.name}
        table.rows.append(row)
        with record_failure(row):
            row |= measure_feature(plan, feature)
    table.note = "The ratio is to Blackhole with its defaults. The first row compares them with themselves."
    return table


def measure_feature(plan: Plan, feature: Feature) -> Row:
    """Compare a feature with the defaults under each load. Raises Failure if either server fails."""
    row: Row = {}
    servers = [which.server(plan.directory) for which in (DEFAULTS, feature)]
    for load in LOADS:
        if load.name not in SHAPES:
            continue
        default, changed = compare(
            plan, [Candidate(server.name, server, load.send, load.warm) for server in servers]
        )
        for result in (default, changed):
            if "failure" in result:
                raise Failure(result["failure"])
        row |= {f"{load.name}_{key}": value for key, value in changed.items() if key != "server"}
        row[f"{load.name}_default_cpus"] = default["cpus"]
    return row
