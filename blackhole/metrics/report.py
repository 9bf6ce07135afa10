"""The report on a sender: which rules it broke, how often, where they are written, and what to do about it.

A report is made of counters alone, of a running server or of the difference of two snapshots. It contains no
address (unless the operator asks for the client log), no subject and no content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple
from xml.etree import ElementTree

from blackhole.metrics.snapshot import UNCERTAIN_KEYS, Snapshot
from blackhole.rules.outcomes import RETRY_INTERVALS, UNCERTAIN_OUTCOMES
from blackhole.smtp.violations import LEVELS, VIOLATIONS, Violation


class Finding(NamedTuple):
    """A rule that was broken."""

    rule: Violation
    times: int


def findings(snapshot: Snapshot) -> list[Finding]:
    """Return the rules that were broken, ordered by level and then by how often."""
    broken = ((rule, snapshot.violations[rule.name]) for rule in VIOLATIONS)
    found = [Finding(rule, count) for rule, count in broken if count]
    return sorted(found, key=lambda finding: (LEVELS.index(finding.rule.level), -finding.times))


def levels_from(level: str) -> tuple[str, ...]:
    """Return this level and all graver ones; none for the level "never"."""
    return LEVELS[: LEVELS.index(level) + 1] if level in LEVELS else ()


def fails(snapshot: Snapshot, level: str) -> bool:
    """Return whether a rule of this level or of a graver one was broken; False for the level "never"."""
    counted = levels_from(level)
    return any(finding.rule.level in counted for finding in findings(snapshot))


# Text.


def report_text(snapshot: Snapshot) -> str:
    """Return the report for people."""
    lines = [*summary_lines(snapshot), ""]
    for rule, count in findings(snapshot):
        lines += [
            f"{rule.level.upper():<6} {rule.name}: {rule.meaning}, {times(count)}",
            f"       {rule.source}. {rule.hint[0].upper()}{rule.hint[1:]}.",
        ]
    if not findings(snapshot):
        lines.append("No violations were found.")
    sections = ("Retries:", retry_lines(snapshot)), ("Rule matches:", rule_match_lines(snapshot))
    for title, section in sections:
        lines += ["", title, *section] if section else []
    lines += ["", *client_lines(snapshot)] if snapshot.clients else []
    return "\n".join(lines) + "\n"


def plural(count: int, noun: str, plural_noun: str = "") -> str:
    """Return a count and its noun: "1 message", "2,000 messages"."""
    return f"{count:,} {noun if count == 1 else plural_noun or f'{noun}s'}"


def times(count: int) -> str:
    """Return "once" or "1,200 times"."""
    return "once" if count == 1 else f"{count:,} times"


def summary_lines(snapshot: Snapshot) -> list[str]:
    """Return the totals of messages, recipients and connections."""
    connections = sum(snapshot.connections.values())
    dispositions = ", ".join(f"{count:,} {name}" for name, count in snapshot.messages.items())
    return [
        f"{plural(sum(snapshot.messages.values()), 'message')} ({dispositions}),"
        f" {plural(snapshot.recipients, 'recipient')}",
        f"{plural(connections, 'connection')},"
        f" {snapshot.closed_without_quit:,} closed by clients without QUIT",
    ]


def client_lines(snapshot: Snapshot) -> Iterator[str]:
    """Yield a line for each client of the client log."""
    for client in snapshot.clients or ():
        yield (
            f"{client.address}: {plural(client.connections, 'connection')},"
            f" {plural(client.messages, 'message')}, {plural(client.violations, 'violation')}"
        )


def rule_match_lines(snapshot: Snapshot) -> list[str]:
    """Return a line for each rule of the scenarios: how often it matched."""
    return [f"  {'rule ' * name.isdecimal()}{name}: {count:,}" for name, count in snapshot.rule_hits.items()]


def retry_lines(snapshot: Snapshot) -> list[str]:
    """Return how the sender retried: a line for each kind of mail that was not accepted, or not for
    certain."""
    seen = snapshot.retries
    deferred, refused = seen["deferred"], seen["refused"]
    lines = []
    if deferred["recipients"] or any(snapshot.retry_intervals):
        lines.append(
            f"deferred with 4xx: {plural(deferred['recipients'], 'recipient')};"
            f" {deferred['returned']} retried, {deferred['missing']} not yet,"
            f" {deferred['taken']} accepted in the end"
        )
    if any(snapshot.retry_intervals):
        lines += _interval_lines(snapshot.retry_intervals, deferred["again"])
    if refused["recipients"]:
        lines.append(
            f"refused with 5xx: {plural(refused['recipients'], 'recipient')}; {refused['returned']} retried"
        )
    for name, meaning in UNCERTAIN_OUTCOMES.values():
        outcome = seen["uncertain"][UNCERTAIN_KEYS[name]]
        if outcome["messages"]:
            lines.append(
                f"{meaning}: {plural(outcome['messages'], 'message')}; {outcome['returned']} sent again"
            )
    return lines


def _interval_lines(counts: Sequence[int], again: int) -> Iterator[str]:
    """Yield how long the sender waited: the shortest, the median and the longest class, and each with its
    count."""
    used = [number for number, count in enumerate(counts) if count]
    retries = sum(counts)
    median = next(number for number, seen in enumerate(accumulate(counts)) if 2 * seen >= retries)
    yield (
        f"{'1 retry' if retries == 1 else f'{retries} retries'}, {again} deferred again:"
        f" the shortest interval {interval_text(used[0])}, the median {interval_text(median)},"
        f" the longest {interval_text(used[-1])}"
    )
    for number in used:
        yield f"  {interval_text(number)}: {counts[number]}"


def interval_text(number: int) -> str:
    """Return the name of a class of retry intervals: "within 5 min", or "over 24 h" for the last."""
    seconds = RETRY_INTERVALS[min(number, len(RETRY_INTERVALS) - 1)]
    unit, size = next((one for one in (("h", 3600), ("min", 60)) if not seconds % one[1]), ("s", 1))
    return f"{'within' if number < len(RETRY_INTERVALS) else 'over'} {seconds // size} {unit}"


# Formats for programs.


def as_dict(snapshot: Snapshot) -> dict[str, Any]:
    """Return the report for JSON."""
    return {
        "messages": dict(snapshot.messages),
        "recipients": snapshot.recipients,
        "connections": sum(snapshot.connections.values()),
        "findings": [
            {
                "rule": rule.name,
                "level": rule.level,
                "count": count,
                "source": rule.source,
                "meaning": rule.meaning,
                "hint": rule.hint,
            }
            for rule, count in findings(snapshot)
        ],
        "retries": snapshot.retries,
        "rule_hits": snapshot.rule_hits,
    } | snapshot.clients_as_dict()


def report_json(snapshot: Snapshot) -> str:
    """Return the report as JSON text."""
    return json.dumps(as_dict(snapshot), indent=2) + "\n"


def report_junit(snapshot: Snapshot, fail_on: str = LEVELS[-1]) -> str:
    """Return the report as JUnit XML, for CI servers: a case for each rule.

    A rule that was broken fails from the level `fail_on` on; below it, the case says so and passes.
    """
    counted = levels_from(fail_on)
    failures = str(sum(finding.rule.level in counted for finding in findings(snapshot)))
    suite = ElementTree.Element("testsuite", name="blackhole", tests=str(len(VIOLATIONS)), failures=failures)
    for rule in VIOLATIONS:
        case = ElementTree.SubElement(suite, "testcase", classname=f"blackhole.{rule.level}", name=rule.name)
        count = snapshot.violations[rule.name]
        message = f"{rule.meaning} ({count})"
        if count and rule.level not in counted:
            ElementTree.SubElement(case, "system-out").text = f"{message}\n{rule.source}: {rule.hint}"
        elif count:
            failure = ElementTree.SubElement(case, "failure", message=message, type=rule.level)
            failure.text = f"{rule.source}: {rule.hint}"
    output = [*retry_lines(snapshot), *rule_match_lines(snapshot)]
    if output:
        ElementTree.SubElement(suite, "system-out").text = "\n".join(output)
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


FORMATS: Final[dict[str, Callable[[Snapshot], str]]] = {
    "text": report_text,
    "json": report_json,
    "junit": report_junit,
}
"""Name of a format -> the function that renders a report in it."""
