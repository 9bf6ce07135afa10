"""What the connections of a listener share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blackhole.addresses import NetworkSet
from blackhole.metrics.counters import CounterCells
from blackhole.metrics.evidence import EvidenceWriter
from blackhole.net.admission import AdmissionControl
from blackhole.net.latency import LatencySampler
from blackhole.net.limit_log import LimitLog
from blackhole.net.proxy import HeaderErrorLog
from blackhole.net.tls import TLSContexts
from blackhole.settings import Listener, Settings
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.state import ClientLimits


@dataclass(frozen=True, slots=True)
class ListenerContext:
    """What a connection is given of its listener.

    The server makes a new one when the scenario changes or connections run out, and gives it to
    the connections that are open.
    """

    listener: Listener
    settings: Settings
    engine: SMTPEngine
    """For clients without limits: trusted ones, or all where there are no limits."""
    limited_engine: SMTPEngine
    """For clients with limits."""
    limits: ClientLimits
    """The limits of one client, which are stricter under stress."""
    counters: CounterCells
    """The worker's row of the counters."""
    tls: TLSContexts | None
    """None without a certificate."""
    reads_client_hello: bool
    """What the client calls the server in the handshake matters: to the TLS menu, or to a rule."""
    admission: AdmissionControl | None
    """None where there are no limits."""
    limit_log: LimitLog | None
    """Logs which clients meet a limit; None where there are no limits."""
    proxy_parser: Any
    """Parses PROXY headers; None where the listener expects none."""
    proxies: NetworkSet
    """Networks whose PROXY headers are trusted."""
    log_connection: Callable[..., None]
    """Logs what a client can bring about: at debug level in public, where that is too much."""
    greets_at_once: bool
    """Nothing comes before the greeting: no PROXY header, no limits, no TLS handshake."""
    client_changed: Callable[[Any], None]
    """Accounts for the client of a connection on which XCLIENT has named another one."""
    evidence: EvidenceWriter | None = None
    """Keeps where violations were committed."""
    proxy_errors: HeaderErrorLog = field(default_factory=HeaderErrorLog)
    """Logs which proxies send headers that cannot be read."""
    stressed: bool = False
    """Connections are running out, so timeouts are reduced."""
    latency: LatencySampler = field(default_factory=LatencySampler)
