"""The cost of scenarios: smtp-sink, Blackhole without rules, and Blackhole with the rules of the usual uses.

`smtp-source` stops at the first refusal, so no rule hits: chances are one in a billion, and addresses are
others. What is measured is what rules cost the mail that they let pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.comparison import LOADS, Candidate, compare
from benchmarks.plan import Plan
from benchmarks.server import Server, blackhole
from benchmarks.table import Row, Table

CHANCE: Final = "chance = 1e-9"

RULE: Final = """
[[rule]]
phase = "{phase}"
{conditions}
reply = "{reply}"
"""


def rule(phase: str, conditions: str, reply: str = "451 4.7.1 try later") -> str:
    """Return the text of a rule."""
    return RULE.format(phase=phase, conditions=conditions, reply=reply)


USUAL: Final = (
    rule("RCPT", 'recipient = "full@*"', "552 5.2.2 mailbox full")
    + rule("RCPT", 'recipient = ["nobody@*", "unknown@*"]', "550 5.1.1 no such user")
    + rule(".", CHANCE, "550 5.7.1 refused")
    + rule("RCPT", CHANCE)
)
"""The scenario that everybody begins with."""

PROVIDERS: Final = (
    *(f'recipient = "*@mail{number}.invalid"\n{CHANCE}' for number in range(14)),
    *(f'recipient = "*@slow{number}.invalid"\nattempt = "<= 2"' for number in range(4)),
    'recipient = "*@limited.invalid"\nthrottle = { recipients = 9, per = "minute", by = "all" }',
    'recipient = "*@grey.invalid"\ngreylist = true',
)

SCENARIOS: Final = {
    "usual": USUAL,
    "usual, `seed = 7`": "seed = 7\n" + USUAL,
    "20 rules of providers": "".join(rule("RCPT", conditions) for conditions in PROVIDERS),
    "100 rules by chance": "".join(rule("RCPT", CHANCE) for _ in range(100)),
    "delays and faults that do not hold": rule("RCPT", 'recipient = "slow@*"\ndelay = 1', "250 2.1.5 ok")
    + rule(".", f'{CHANCE}\nthen = "close"', "250 2.0.0 ok"),
}
"""Name -> text of the file."""

SHAPES: Final = ("reused", "connection", "10k")

COLUMNS: Final = {
    "load": ("load", ""),
    "server": ("server", ""),
    "cpu": ("CPU µs/message", ",.1f"),
    "ratio": ("ratio", ".2f"),
    "range": ("least to most", ""),
}


def servers(plan: Plan) -> Iterator[Server]:
    """Yield the servers to compare: those of the plan, and Blackhole with each scenario."""
    yield from (server for server in plan.smtp_servers())
    for number, (name, text) in enumerate(SCENARIOS.items()):
        file = Path(plan.directory) / f"scenario{number}.toml"
        file.write_text(text)
        yield blackhole(f"'{name}' --scenario {file}")


def measure(plan: Plan) -> Table:
    """Measure all scenarios under each load. The ratios are to the first server of the plan."""
    table = Table("scenarios", "Scenarios whose rules match nothing", COLUMNS)
    chosen: Sequence[Server] = tuple(servers(plan))
    for load in LOADS:
        if load.name in SHAPES:
            found = compare(plan, [Candidate(server.name, server, load.send, load.warm) for server in chosen])
            rows: list[Row] = [{"load": load.name, **row} for row in found]
            table.rows += rows
    return table
