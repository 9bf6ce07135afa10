"""The counters of a machine by name, as the fleet's store keeps them.

Machines of different versions have different layouts of their counters. Names mean the same in all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

from blackhole.metrics.layout import (
    CELL_INDEX,
    CELLS,
    CODES_PER_PHASE,
    FIRST_CODE,
    HISTOGRAM_INDEX,
    HISTOGRAMS,
    INSPECTED_START,
    LIMIT_DECISIONS,
    LIMIT_DECISIONS_START,
    LIMITS_START,
    LISTENERS_START,
    MAX_LISTENERS,
    MAX_RULE_NAMES,
    OTHERS,
    OUTCOMES_START,
    ROW_CELLS,
    RULE_HITS_START,
    SAMPLED_START,
    VIOLATING_CONNECTIONS_START,
    VIOLATIONS_START,
)
from blackhole.metrics.snapshot import ProcessStatus, Snapshot
from blackhole.rules.outcomes import EVENTS
from blackhole.settings import CLIENT_LIMITS
from blackhole.smtp.state import PHASES
from blackhole.smtp.violations import INSPECTED, SAMPLED, VIOLATIONS

LISTENER: Final = "listener "
RULE: Final = "rule "
"""What the field of a listener, or of a rule, begins with; its name follows."""

RULE_STARTS: Final = {
    RULE: RULE_HITS_START,
    **{
        f"{decision} ": LIMIT_DECISIONS_START + number * MAX_RULE_NAMES
        for number, decision in enumerate(LIMIT_DECISIONS)
    },
}
"""What the fields of a rule begin with: matches, and what its limit decides -> the first of the cells."""

MESSAGES_OF: Final = "messages "
"""What the field of all messages of a generation begins with. They are counted by their replies too."""


def _fixed_fields() -> Iterator[tuple[str, int]]:
    """Yield the field of each counter that every machine has, and its cell."""
    for number, phase in enumerate(PHASES):
        for code in range(CODES_PER_PHASE):
            yield f"reply {phase} {code + FIRST_CODE}", number * CODES_PER_PHASE + code
    for cell, violation in enumerate(VIOLATIONS, VIOLATIONS_START):
        yield f"violation {violation.name}", cell
        yield f"connections with {violation.name}", VIOLATING_CONNECTIONS_START + cell - VIOLATIONS_START
    for cell, name in enumerate(SAMPLED, SAMPLED_START):
        yield f"sampled violation {name}", cell
    for cell, what in enumerate(INSPECTED, INSPECTED_START):
        yield f"inspected {what}", cell
    for cell, event in enumerate(EVENTS, OUTCOMES_START):
        yield f"outcome {event.name}", cell
    for cell, limit in enumerate(CLIENT_LIMITS, LIMITS_START):
        yield f"limit {limit}", cell
    for row in CELLS:
        if not row.gauge:
            yield f"counter {row.name}", CELL_INDEX[row.name]
    for histogram in HISTOGRAMS:
        start = HISTOGRAM_INDEX[histogram.name]
        for bucket in range(histogram.buckets):
            yield f"histogram {histogram.name} {bucket}", start + bucket
        yield f"histogram {histogram.name} sum", start + histogram.buckets


FIXED_FIELDS: Final = dict(_fixed_fields())
"""Field -> cell, of all counters but those of listeners and rules."""

FIELD_OF_CELL: Final = {cell: field for field, cell in FIXED_FIELDS.items()}

NAMESPACE: Final = "in "
"""What the field of a namespace begins with; its id and a field follow."""


def fields(snapshot: Snapshot) -> dict[str, int]:
    """Return the counters that are not zero, by field."""
    cells = snapshot.cells
    found = {name: cells[cell] for name, cell in FIXED_FIELDS.items() if cells[cell]}
    found |= {LISTENER + name: count for name, count in snapshot.connections.items() if count}
    return found | {
        kind + name: cells[cell - RULE_HITS_START + start]
        for name, cell in snapshot.rule_counters.items()
        for kind, start in RULE_STARTS.items()
        if cells[cell - RULE_HITS_START + start]
    }


def namespace_fields(namespace: str, counted: Mapping[int, int], server: Snapshot) -> dict[str, int]:
    """Return the counters of a namespace by field, given its id and counts by cell.

    `server` has the names of listeners and rules.
    """
    names = {LISTENERS_START + number: LISTENER + name for number, name in enumerate(server.listeners)}
    for kind, start in RULE_STARTS.items():
        names |= {cell - RULE_HITS_START + start: kind + name for name, cell in server.rule_counters.items()}
    return {
        f"{NAMESPACE}{namespace} {field}": count
        for cell, count in counted.items()
        if count and (field := FIELD_OF_CELL.get(cell) or names.get(cell))
    }


def snapshot(
    found: Mapping[str, int],
    at: float,
    started: float,
    processes: tuple[ProcessStatus, ...],
    workers: int,
    notes: tuple[str, ...] = (),
) -> Snapshot:
    """Return counters as a snapshot. `at` is in seconds since `started`, which is in seconds since 1970.

    `processes` has the machines in place of processes, and `workers` is the number of their workers. `notes`
    are what a report says of the machines.

    Fields that this version does not know are left out. Listeners and rules that are too many are added up
    under one name.
    """
    cells = [0] * ROW_CELLS
    for name in found.keys() & FIXED_FIELDS.keys():
        cells[FIXED_FIELDS[name]] = found[name]
    cells[CELL_INDEX["accepting"]] = workers
    listeners = _largest(_named(found, LISTENER), MAX_LISTENERS)
    cells[LISTENERS_START : LISTENERS_START + len(listeners)] = listeners.values()
    of_rules = {start: _named(found, kind) for kind, start in RULE_STARTS.items()}
    totals = Counter[str]()
    for counts in of_rules.values():
        totals.update(counts)
    rules = {name: number for number, name in enumerate(_largest(totals, MAX_RULE_NAMES))}
    for start, counts in of_rules.items():
        for name, count in counts.items():
            cells[start + rules.get(name, len(rules) - 1)] += count
    return Snapshot(
        at=at,
        started=started,
        listeners=tuple(listeners),
        processes=processes,
        rule_counters={name: RULE_HITS_START + number for name, number in rules.items()},
        cells=tuple(cells),
        notes=notes,
    )


def _named(found: Mapping[str, int], kind: str) -> dict[str, int]:
    """Return the counts of one kind by name."""
    return {name.removeprefix(kind): count for name, count in found.items() if name.startswith(kind)}


def _largest(counts: dict[str, int], most: int) -> dict[str, int]:
    """Return counts by name, the largest ones apart and OTHERS last if there are more than `most`."""
    if len(counts) <= most:
        return dict(sorted(counts.items()))
    rest = counts.pop(OTHERS, 0)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    largest = dict(sorted(islice(ranked, most - 1)))
    return largest | {OTHERS: rest + sum(count for _, count in ranked[most - 1 :])}
