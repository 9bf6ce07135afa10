"""The status of a running server in a few lines, its rates in one, and the figures of a run at its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from blackhole.metrics.findings import plural
from blackhole.metrics.report import client_lines, summary_lines
from blackhole.metrics.snapshot import Distribution, ProcessStatus, Snapshot


def worker_processes(snapshot: Snapshot) -> list[ProcessStatus]:
    """Return the worker processes of a snapshot."""
    return [process for process in snapshot.processes if "worker" in process.title]


def status_text(snapshot: Snapshot, uptime: float, server: Iterable[str] = ()) -> str:
    """Return the status for people. `uptime` is in seconds, `server` are the lines of `server_lines`."""
    lines = [
        f"up {duration(uptime)}, {plural(len(worker_processes(snapshot)), 'worker')},"
        f" {plural(snapshot.open, 'connection')} open",
        *server,
        *figure_lines(snapshot),
        *(
            f"{process.title.removeprefix('blackhole: ')}: pid {process.pid}, {process.open:,} open,"
            f" {process.cpu:,.1f} s of CPU time"
            for process in snapshot.processes
        ),
        *client_lines(snapshot),
    ]
    return "\n".join(lines) + "\n"


def server_lines(facts: Mapping[str, Any], runtime_scenario: str, one_shot_replies: int) -> Iterator[str]:
    """Yield where a server listens, its scenario and its dashboard.

    `facts` are those of the server, `runtime_scenario` names the scenario that replaces the configured one.
    """
    yield from facts.get("lines", ())
    configured = " ".join(facts.get("scenario", ()))
    if facts.get("set"):
        configured += f" with {', '.join(facts['set'])}"
    if runtime_scenario:
        yield f"scenario {runtime_scenario}, set at run time in place of {configured or 'none'}"
    elif configured:
        yield f"scenario {configured}"
    elif facts:
        yield "no scenario"
    if one_shot_replies:
        yield f"set at run time: {plural(one_shot_replies, 'one-shot reply', 'one-shot replies')}"


def figure_lines(snapshot: Snapshot) -> Iterator[str]:
    """Yield the totals. What is not counted but sampled says so."""
    yield from summary_lines(snapshot)
    yield f"{plural(snapshot.total('received_bytes'), 'octet')} received"
    service = snapshot.histograms["service_seconds"]
    if service.count:
        yield (
            f"time to reply, of {plural(service.count, 'sampled reply', 'sampled replies')}:"
            f" median {_time(service, 0.5)}, 99 % within {_time(service, 0.99)}"
        )
    limits = [f"{name} {count:,}" for name, count in snapshot.limits_met.items() if count]
    if limits:
        yield f"limits that clients met: {', '.join(limits)}"
    yield from store_lines(snapshot)
    if snapshot.rule_hits:
        yield f"rule matches: {sum(snapshot.rule_hits.values()):,}"
    of_rules = snapshot.rule_limits.values()
    if of_rules:
        passed, limited = sum(one.passed for one in of_rules), sum(one.limited for one in of_rules)
        yield f"limits of rules: {passed:,} passed, {limited:,} limited"


def store_lines(snapshot: Snapshot) -> Iterator[str]:
    """Yield how often a shared store did not answer, if mail had questions for one."""
    store = snapshot.store
    if store["questions"]:
        yield (
            f"shared store: {plural(store['questions'], 'question')},"
            f" {store['unanswered']:,} without an answer in time"
        )


def _time(times: Distribution, share: float) -> str:
    seconds = times.quantile(share) or 0.0
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:,.3g} s"


def end_lines(snapshot: Snapshot) -> Iterator[str]:
    """Yield the figures of a run that has ended."""
    first, *others = figure_lines(snapshot)
    yield f"{first} in {duration(snapshot.seconds)}"
    yield from others


def duration(seconds: float) -> str:
    """Return a duration as text: "2 h 5 min", "3 min 20 s" or "7 s"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def rate_line(between: Snapshot) -> str:
    """Return the rates between two snapshots, given their difference, in one line."""
    seconds = between.seconds or 1.0
    messages = between.messages
    workers = len(worker_processes(between))  # none in the figures of a fleet
    cpu = f"{100 * between.cpu / seconds / (workers or 1):4.0f} % CPU{' per worker' if workers else ''}"
    return (
        f"{sum(messages.values()) / seconds:9,.0f} messages/s"
        f" {messages['deferred'] / seconds:7,.0f} deferred {messages['rejected'] / seconds:7,.0f} rejected"
        f" {sum(between.connections.values()) / seconds:7,.0f} connections/s {between.open:6,d} open"
        f" {between.total('received_bytes') / seconds / 1e6:8,.2f} MB/s {cpu}"
    )
