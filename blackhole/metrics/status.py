"""The status of a running server in a few lines, and its rates in one."""

from __future__ import annotations

from blackhole.metrics.report import client_lines, plural, summary_lines
from blackhole.metrics.snapshot import ProcessStatus, Snapshot


def worker_processes(snapshot: Snapshot) -> list[ProcessStatus]:
    """Return the worker processes of a snapshot."""
    return [process for process in snapshot.processes if "worker" in process.title]


def status_text(snapshot: Snapshot, uptime: float) -> str:
    """Return the status for people. `uptime` is in seconds."""
    lines = [
        f"up {duration(uptime)}, {plural(len(worker_processes(snapshot)), 'worker')},"
        f" {plural(snapshot.open, 'connection')} open",
        *summary_lines(snapshot),
        f"{plural(snapshot.total('received_bytes'), 'octet')} received",
    ]
    if snapshot.rule_hits:
        lines.append(f"rule matches: {sum(snapshot.rule_hits.values())}")
    lines += [
        f"{process.title.removeprefix('blackhole: ')}: pid {process.pid}, {process.open} open,"
        f" {process.cpu:.1f} s of CPU time"
        for process in snapshot.processes
    ]
    lines += client_lines(snapshot)
    return "\n".join(lines) + "\n"


def duration(seconds: float) -> str:
    """Return a duration as text: "2 h 5 min", "3 min 20 s" or "7 s"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def rate_line(between: Snapshot) -> str:
    """Return the rates between two snapshots, given their difference, in one line."""
    seconds = between.seconds or 1.0
    messages = between.messages
    cpu = 100 * between.cpu / seconds / (len(worker_processes(between)) or 1)
    return (
        f"{sum(messages.values()) / seconds:9.0f} messages/s"
        f" {messages['deferred'] / seconds:7.0f} deferred {messages['rejected'] / seconds:7.0f} rejected"
        f" {sum(between.connections.values()) / seconds:7.0f} connections/s {between.open:6d} open"
        f" {between.total('received_bytes') / seconds / 1e6:8.2f} MB/s {cpu:4.0f} % CPU per worker"
    )
