"""The report on a sender: which rules it broke, how often, where they are written, and what to do about it.

A report is made of counters, of a running server or of the difference of two snapshots, and of the evidence
that the workers keep. It contains no address of mail, no subject and no content, unless the operator asks for
the lines of the evidence, and no address of a client, unless there is a client log.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Final
from xml.etree import ElementTree

from blackhole.metrics.findings import findings, inspection_text, plural
from blackhole.metrics.snapshot import UNCERTAIN_KEYS, Snapshot
from blackhole.metrics.tls_summary import tls_lines
from blackhole.providers import OF_PROVIDER
from blackhole.rules.outcomes import RETRY_INTERVALS, UNCERTAIN_OUTCOMES
from blackhole.smtp.violations import IN_HEADERS, OF_CONTENT, RFC_LEVELS, VIOLATIONS, Violation


def levels_from(level: str) -> tuple[str, ...]:
    """Return this level and all graver ones; none for the level "never"."""
    return RFC_LEVELS[: RFC_LEVELS.index(level) + 1] if level in RFC_LEVELS else ()


def counts(rule: Violation, fail_on: str) -> bool:
    """Return whether a rule is of a level or a graver one, or of those of a provider ("provider:gmail")."""
    if fail_on.startswith(OF_PROVIDER):
        return fail_on.removeprefix(OF_PROVIDER) in rule.providers
    return rule.level in levels_from(fail_on)


def fails(snapshot: Snapshot, fail_on: str) -> bool:
    """Return whether a rule that counts was broken; False for the level "never"."""
    return any(counts(finding.rule, fail_on) for finding in findings(snapshot))


def uninspected(snapshot: Snapshot, fail_on: str) -> str:
    """Return why nothing can be said of the rules of a provider; an empty text if something can."""
    if not fail_on.startswith(OF_PROVIDER) or snapshot.inspected[IN_HEADERS].inspected:
        return ""
    return f"fail_on {fail_on}: no message was inspected; start with --inspect-content, and send it messages"


# Text.


def report_text(snapshot: Snapshot) -> str:
    """Return the report for people."""
    lines = [*summary_lines(snapshot), inspection_text(snapshot), ""]
    found = findings(snapshot)
    for finding in found:
        rule = finding.rule
        lines.append(f"{level_text(rule.level):<6} {rule.name}: {rule.meaning}, {finding.seen}")
        lines += (f"       {line}" for line in finding.lines())
    if not found:
        lines.append("No violations were found.")
    sections = (
        ("Retries:", retry_lines(snapshot)),
        ("TLS:", list(tls_lines(snapshot))),
        ("Rule matches:", rule_match_lines(snapshot)),
        ("Shared store:", shared_store_lines(snapshot)),
    )
    for title, section in sections:
        lines += ["", title, *section] if section else []
    lines += ["", "Recipients by domain:", *domain_lines(snapshot)] if snapshot.domains else []
    lines += ["", *client_lines(snapshot)] if snapshot.clients else []
    lines += ["", *snapshot.notes] if snapshot.notes else []
    return "\n".join(lines) + "\n"


def level_text(level: str) -> str:
    """Return a level as reports show it: that of an RFC in its capital letters."""
    return level.upper() if level in ("must", "should") else level


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
            f" {plural(client.messages, 'message')}, {plural(client.violations, 'violation')} counted,"
            f" {client.sampled_violations:,} seen in samples"
        )


def domain_lines(snapshot: Snapshot) -> Iterator[str]:
    """Yield a line for each domain of the domain log."""
    for one in snapshot.domains or ():
        line = (
            f"  {one.domain}: {one.accepted:,} accepted, {one.deferred:,} deferred, {one.refused:,} refused"
        )
        if one.retries:
            line += f"; half of {plural(one.retries, 'retry', 'retries')} within {one.retry_p50:,.0f} s"
            line += f", 99 % within {one.retry_p99:,.0f} s"
        yield line


def rule_match_lines(snapshot: Snapshot) -> list[str]:
    """Return a line for each rule of the scenarios: how often it matched, and what its limit decided."""
    return [
        f"  {'rule ' * name.isdecimal()}{name}: {count:,}{limit_text(snapshot, name)}"
        for name, count in snapshot.rule_hits.items()
    ]


def limit_text(snapshot: Snapshot, name: str) -> str:
    """Return what the limit of a rule has decided, as the end of a line; nothing for a rule without one."""
    one = snapshot.rule_limits.get(name)
    if one is None:
        return ""
    return f"; {one.limit or 'its limit'}: {one.passed:,} passed, {one.limited:,} limited"


def shared_store_lines(snapshot: Snapshot) -> list[str]:
    """Return a line about questions that a shared store did not answer; rules and limits went without it."""
    store = snapshot.store
    if not store["unanswered"]:
        return []
    return [f"  {store['unanswered']:,} of {plural(store['questions'], 'question')} had no answer in time"]


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
    return (
        {
            "messages": dict(snapshot.messages),
            "recipients": snapshot.recipients,
            "connections": sum(snapshot.connections.values()),
            "inspected": snapshot.inspected_as_dict(),
            "findings": [finding.as_dict() for finding in findings(snapshot)],
            "retries": snapshot.retries,
            "tls": snapshot.tls_as_dict(),
            "rule_hits": snapshot.rule_hits,
            "rule_limits": snapshot.rule_limits_as_dict(),
            "store": snapshot.store,
        }
        | snapshot.clients_as_dict()
        | ({"notes": [*snapshot.notes]} if snapshot.notes else {})
    )


def report_json(snapshot: Snapshot) -> str:
    """Return the report as JSON text."""
    return json.dumps(as_dict(snapshot), indent=2) + "\n"


def report_junit(snapshot: Snapshot, fail_on: str = RFC_LEVELS[-1]) -> str:
    """Return the report as JUnit XML, for CI servers: a case for each rule.

    A rule that was broken fails if `fail_on` counts it; else the case says so and passes.
    """
    found = {finding.rule.name: finding for finding in findings(snapshot)}
    failures = str(sum(counts(finding.rule, fail_on) for finding in found.values()))
    suite = ElementTree.Element("testsuite", name="blackhole", tests=str(len(VIOLATIONS)), failures=failures)
    for rule in VIOLATIONS:
        case = ElementTree.SubElement(suite, "testcase", classname=f"blackhole.{rule.level}", name=rule.name)
        finding = found.get(rule.name)
        if finding is None:
            if rule.sampled_in in OF_CONTENT and not snapshot.inspected[rule.sampled_in].inspected:
                ElementTree.SubElement(case, "skipped", message="not inspected: see --inspect-content")
            continue
        message, text = f"{rule.meaning}, {finding.seen}", "\n".join(finding.lines())
        if counts(rule, fail_on):
            ElementTree.SubElement(case, "failure", message=message, type=rule.level).text = text
        else:
            ElementTree.SubElement(case, "system-out").text = f"{message}\n{text}"
    output = [
        inspection_text(snapshot),
        *retry_lines(snapshot),
        *tls_lines(snapshot),
        *rule_match_lines(snapshot),
        *snapshot.notes,
    ]
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
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
