"""What a report says of TLS: why handshakes failed, and what senders did at each entry of the TLS menu.

A sender that refuses a bad certificate ends the handshake with an alert, or leaves after it without a
message. One that sends a message has accepted the certificate, or does not look at it.
"""

from __future__ import annotations

from collections.abc import Iterator

from blackhole.metrics.findings import plural
from blackhole.metrics.snapshot import Snapshot
from blackhole.metrics.tls_events import TLS_FAILURES


def tls_lines(snapshot: Snapshot) -> Iterator[str]:
    """Yield a line for each reason of handshakes that failed, and for each entry that clients have met."""
    found = snapshot.tls_as_dict()
    for reason, count in found["failures"].items():
        yield f"{plural(count, 'handshake')} failed, {reason}: {TLS_FAILURES[reason]}"
    for entry, results in found["menu"].items():
        yield (
            f"at {entry}: {plural(results['failed'], 'handshake')} failed,"
            f" {plural(results['left'], 'connection')} without a message,"
            f" {plural(results['sent'], 'connection')} with a message"
        )
