"""The verdict on a sender: which rules it broke, how often, where they stand, and what to do about it.

Made from figures alone, of a running server or of the time between two looks at them; no address, subject
or content is in them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final, NamedTuple
from xml.etree import ElementTree as xml

from blackhole.metrics.snapshot import Snapshot
from blackhole.rules.retries import RETRY_INTERVALS, UNCERTAIN_OUTCOMES
from blackhole.smtp.violations import LEVELS, VIOLATIONS, Violation


class Finding(NamedTuple):
    """A rule that was broken."""

    rule: Violation
    times: int


def findings(figures: Snapshot) -> list[Finding]:
    """The rules that were broken, the gravest first, and among these the most frequent."""
    found = [
        Finding(rule, figures.violations[rule.name]) for rule in VIOLATIONS if figures.violations[rule.name]
    ]
    return sorted(found, key=lambda one: (LEVELS.index(one.rule.level), -one.times))


def failed(figures: Snapshot, level: str) -> bool:
    """Whether a rule of this level, or of a graver one, was broken; of none if it is "never"."""
    counted = LEVELS[: LEVELS.index(level) + 1] if level in LEVELS else ()
    return any(one.rule.level in counted for one in findings(figures))


def text(figures: Snapshot) -> str:
    """For people."""
    lines = [*_summary(figures), ""]
    for rule, count in findings(figures):
        lines += [
            f"{rule.level.upper():<6} {rule.name}: {rule.meaning}, {times(count)}",
            f"       {rule.source}. {rule.hint[0].upper()}{rule.hint[1:]}.",
        ]
    if not findings(figures):
        lines.append("Nothing was found to be wrong with the sender.")
    for title, told in (("How it retried:", retries(figures)), ("How often rules spoke:", spoken(figures))):
        lines += ["", title, *told] if told else []
    lines += ["", *clients(figures)] if figures.clients else []
    return "\n".join(lines) + "\n"


def many(count: int, what: str) -> str:
    """A count of things."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def clients(figures: Snapshot) -> Iterator[str]:
    """Who came, a line for each."""
    for one in figures.clients or ():
        yield (
            f"{one.address}: {many(one.connections, 'connection')}, {many(one.messages, 'message')},"
            f" {many(one.violations, 'violation')}"
        )


def spoken(figures: Snapshot) -> list[str]:
    """How often the rules of scenarios spoke, a line for each."""
    return [
        f"  {'rule ' * name.isdecimal()}{name}: {times(count) if count else 'never'}"
        for name, count in figures.rule_hits.items()
    ]


def retries(figures: Snapshot) -> list[str]:
    """How the sender retried, a line for each thing that there is to say."""
    seen = figures.retries
    deferred, refused = seen["deferred"], seen["refused"]
    waits = {span: count for span, count in deferred["waits"].items() if count}
    lines = []
    were = "was" if deferred["taken"] == 1 else "were"
    if deferred["recipients"] or waits:
        lines.append(
            f"put off with 4xx: {many(deferred['recipients'], 'recipient')};"
            f" {deferred['returned']} came again, {deferred['missing']} did not yet;"
            f" {deferred['taken']} {were} taken in the end"
        )
    if waits:
        shortest, *_, longest = [*waits, *waits]
        lines.append(
            f"they came again {times(sum(waits.values()))},"
            f" {times(deferred['again'])} to be put off once more:"
            f" the first {after(shortest)}, half {after(middle(waits))}, the last {after(longest)}"
        )
        lines += [f"  {after(span)}: {count}" for span, count in waits.items()]
    if refused["recipients"]:
        lines.append(
            f"refused with 5xx: {many(refused['recipients'], 'recipient')}; {refused['returned']} came again"
        )
    for name, meaning in UNCERTAIN_OUTCOMES.values():
        outcome = seen["uncertain"][name]
        if outcome["messages"]:
            lines.append(
                f"{meaning}: {many(outcome['messages'], 'message')}; {outcome['returned']} came again"
            )
    return lines


def middle(counts: Mapping[str, int]) -> str:
    """The class in which the middle one is."""
    passed = accumulate(counts.values())
    return next(name for name, count in zip(counts, passed, strict=True) if 2 * count >= sum(counts.values()))


def after(span: str) -> str:
    """A class of waits, in words."""
    if span == "more":
        return f"after more than {after(str(RETRY_INTERVALS[-1])).removeprefix('within ')}"
    seconds = int(span)
    unit, size = next((one for one in (("h", 3600), ("min", 60)) if not seconds % one[1]), ("s", 1))
    return f"within {seconds // size} {unit}"


def _summary(figures: Snapshot) -> list[str]:
    connections = sum(figures.connections.values())
    of_messages = ", ".join(f"{count} {outcome}" for outcome, count in figures.messages.items())
    return [
        f"{many(sum(figures.messages.values()), 'message')} ({of_messages}),"
        f" {many(figures.recipients, 'recipient')}",
        f"{many(connections, 'connection')}, {figures.closed_without_quit} of them left without QUIT",
    ]


def as_dict(figures: Snapshot) -> dict[str, Any]:
    """For programs."""
    return {
        "messages": dict(figures.messages),
        "recipients": figures.recipients,
        "connections": sum(figures.connections.values()),
        "findings": [
            {
                "rule": rule.name,
                "level": rule.level,
                "count": count,
                "source": rule.source,
                "meaning": rule.meaning,
                "hint": rule.hint,
            }
            for rule, count in findings(figures)
        ],
        "retries": figures.retries,
        "rule_hits": figures.rule_hits,
    } | figures.clients_as_dict()


def as_json(figures: Snapshot) -> str:
    return json.dumps(as_dict(figures), indent=2) + "\n"


def junit(figures: Snapshot) -> str:
    """For the servers that run tests: a case for each rule, failed where it was broken."""
    broken = findings(figures)
    suite = xml.Element("testsuite", name="blackhole", tests=str(len(VIOLATIONS)), failures=str(len(broken)))
    for rule in VIOLATIONS:
        case = xml.SubElement(suite, "testcase", classname=f"blackhole.{rule.level}", name=rule.name)
        count = figures.violations[rule.name]
        if count:
            failure = xml.SubElement(case, "failure", message=f"{rule.meaning} ({count})", type=rule.level)
            failure.text = f"{rule.source}: {rule.hint}"
    told = [*retries(figures), *spoken(figures)]
    if told:
        xml.SubElement(suite, "system-out").text = "\n".join(told)
    xml.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + xml.tostring(suite, encoding="unicode") + "\n"


FORMATS: Final[dict[str, Callable[[Snapshot], str]]] = {"text": text, "json": as_json, "junit": junit}
"""How a report can be had."""


# How it goes.


def status(figures: Snapshot, uptime: float) -> str:
    """A running server in some lines."""
    workers = [worker for worker in figures.workers if "worker" in worker.title]
    lines = [
        f"up {duration(uptime)}, {many(len(workers), 'worker')}, {many(figures.open, 'connection')} open",
        *_summary(figures),
        f"{many(figures.total('received_bytes'), 'octet')} received",
    ]
    if figures.rule_hits:
        lines.append(f"rules spoke {times(sum(figures.rule_hits.values()))}")
    lines += [
        f"{worker.title.removeprefix('blackhole: ')}: pid {worker.pid}, {worker.open} open, "
        f"{worker.cpu:.1f} s of processor time"
        for worker in figures.workers
    ]
    lines += clients(figures)
    return "\n".join(lines) + "\n"


def duration(seconds: float) -> str:
    """As a person says it."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def pace(between: Snapshot) -> str:
    """A line about the time between two looks."""
    seconds = between.seconds or 1.0
    messages = between.messages
    workers = [worker for worker in between.workers if "worker" in worker.title]
    share = 100 * between.cpu / seconds / (len(workers) or 1)
    return (
        f"{sum(messages.values()) / seconds:9.0f} messages/s"
        f" {messages['deferred'] / seconds:7.0f} deferred {messages['rejected'] / seconds:7.0f} rejected"
        f" {sum(between.connections.values()) / seconds:7.0f} connections/s {between.open:6d} open"
        f" {between.total('received_bytes') / seconds / 1e6:8.2f} MB/s {share:4.0f} % of each worker"
    )
