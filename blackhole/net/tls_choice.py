"""How one TLS handshake is done, and what is counted of it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from tornado.iostream import IOStream

from blackhole.metrics.counters import CounterCells
from blackhole.metrics.layout import CELL_INDEX
from blackhole.metrics.tls_events import ALERTS, ENTRY_RESULTS, entry_cell, failure_cell
from blackhole.net.client_hello import server_name
from blackhole.net.connection_interface import ConnectionInterface
from blackhole.net.connection_log import log_connection_event
from blackhole.net.handshake import HandshakeFault
from blackhole.net.stream import ClientStream
from blackhole.net.tls import TLSContexts
from blackhole.rules.model import Rule
from blackhole.smtp.replies import NextAction
from blackhole.tls_menu import TLS_MENU, USUAL_TLS, TLSParameters, entry_name

FAULT_ACTIONS: Final[Mapping[str, NextAction]] = {
    "close-in-handshake": NextAction.CLOSE,
    "reset-in-handshake": NextAction.ABORT,
    "stall-in-handshake": NextAction.HANG,
}
"""Fault of TLSParameters -> what happens when the ClientHello has come."""

NO_CLOSE_NOTIFY: Final = "no-close-notify"

ENTRY_CELLS: Final = {
    (entry.name, result): CELL_INDEX[entry_cell(entry.name, result)]
    for entry in TLS_MENU
    for result in ENTRY_RESULTS
}

TLS_OK: Final = CELL_INDEX["tls_ok"]
TLS_RESUMED: Final = CELL_INDEX["tls_resumed"]
TLS_FAILED: Final = CELL_INDEX["tls_failed"]

OPENSSL_REASONS: Final[Mapping[str, str]] = {
    "UNSUPPORTED_PROTOCOL": "no_common_version",
    "VERSION_TOO_LOW": "no_common_version",
    "NO_PROTOCOLS_AVAILABLE": "no_common_version",
    "NO_SHARED_CIPHER": "no_common_cipher",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "no_common_cipher",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_client_certificate",
    "CERTIFICATE_VERIFY_FAILED": "untrusted_client_certificate",
    "HTTP_REQUEST": "not_tls",
    "HTTPS_PROXY_REQUEST": "not_tls",
    "WRONG_VERSION_NUMBER": "not_tls",
    "UNKNOWN_PROTOCOL": "not_tls",
    "TLSV1_UNRECOGNIZED_NAME": "unrecognized_name",
    "TLSV1_ALERT_USER_CANCELLED": "user_canceled",
}
"""Reason of OpenSSL -> the reason in TLS_FAILURES. Alerts of clients are not among them."""


class TLSChoice:
    """How one handshake is done: as a rule says, or the name that the client asks for, or the listener."""

    __slots__ = ("_contexts", "_reads_client_hello", "parameters", "server_name")

    def __init__(self, contexts: TLSContexts, of_rule: TLSParameters, reads_client_hello: bool) -> None:
        self._contexts = contexts
        self._reads_client_hello = reads_client_hello
        self.parameters = of_rule
        """Known in full when the ClientHello has come."""
        self.server_name = b""

    @classmethod
    def of(cls, connection: ConnectionInterface) -> TLSChoice:
        """Return the choice for a connection."""
        context = connection.context
        assert context.tls is not None
        return cls(context.tls, connection.session.handshake, context.reads_client_hello)

    def start_tls(self, stream: IOStream) -> asyncio.Future[Any]:
        """Return a future of the stream under TLS, as `ClientStream.start_tls` does."""
        contexts = self._contexts
        if self.parameters is USUAL_TLS and not (self._reads_client_hello or contexts.base.fault):
            self.parameters = contexts.base
            return stream.start_tls(True, contexts.default)
        return cast(ClientStream, stream).start_tls(True, contexts.default, choose_context=self.context)

    def context(self, client_hello: bytes) -> ssl.SSLContext:
        """Return the context for a client. Raises HandshakeFault if there is to be no handshake."""
        contexts, wanted = self._contexts, self.parameters
        if self._reads_client_hello:
            self.server_name = server_name(client_hello)
            entry = self.server_name.partition(b".")[0].decode("latin-1").lower()
            if wanted == USUAL_TLS:
                wanted = contexts.entries.get(entry, USUAL_TLS)
        self.parameters = wanted.over(contexts.base)
        action = FAULT_ACTIONS.get(self.parameters.fault)
        if action is not None:
            raise HandshakeFault(action)
        return contexts.get(wanted)

    def succeeded(self, connection: ConnectionInterface) -> None:
        """Count a handshake that succeeded, and tell the session who the client is."""
        stream, counters = connection.stream, connection.context.counters
        secure = cast(ssl.SSLSocket, stream.socket)
        counters[TLS_OK] += 1
        counters[TLS_RESUMED] += bool(secure.session_reused)
        connection.session.tls_version = secure.version() or ""
        identity = b""
        if self.parameters is not USUAL_TLS:
            cast(ClientStream, stream).sends_close_notify = self.parameters.fault != NO_CLOSE_NOTIFY
            if self.parameters.client_cert not in ("", "off"):
                identity = client_identity(secure.getpeercert())
        connection.session.secured(self.server_name, identity)

    def failed(self, connection: ConnectionInterface, error: Exception) -> None:
        """Count and log a handshake that failed."""
        context = connection.context
        reason = failure_reason(error)
        context.counters[TLS_FAILED] += 1
        context.counters[CELL_INDEX[failure_cell(reason)]] += 1
        text = f"{reason}: {getattr(error, 'reason', None) or error}"
        if self.parameters != USUAL_TLS:
            count_entry(context.counters, self.parameters, "failed")
            text += f" ({self.parameters})"
        log_connection_event(connection, context.log_connection, "TLS handshake failed", text)


def reads_client_hello(contexts: TLSContexts | None, rules: Iterable[Rule]) -> bool:
    """Return whether it matters what clients call the server: to the menu, or to a rule."""
    return contexts is not None and (
        bool(contexts.entries) or any(one.key == "sni" for rule in rules for one in rule.conditions)
    )


def failure_reason(error: Exception) -> str:
    """Return why a handshake failed: a name in TLS_FAILURES.

    >>> failure_reason(ConnectionResetError()), failure_reason(ssl.SSLEOFError())
    ('reset', 'closed')
    """
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "closed"
    if not isinstance(error, ssl.SSLError):
        return "reset" if isinstance(error, OSError) else "other"
    reason = getattr(error, "reason", None) or ""
    alert = reason.partition("_ALERT_")[2].lower()
    known = OPENSSL_REASONS.get(reason) or (alert if alert in ALERTS else "")
    return known or ("other_alert" if alert else "other")


def count_entry(counters: CounterCells, parameters: TLSParameters, result: str) -> None:
    """Count the end of a connection whose handshake was done like this, if that is an entry of the menu."""
    cell = ENTRY_CELLS.get((entry_name(parameters), result))
    if cell is not None:
        counters[cell] += 1


def client_identity(certificate: Mapping[str, Any] | None) -> bytes:
    """Return the name in the certificate of a client: its mail address, its host, or its common name.

    `certificate` is as `SSLSocket.getpeercert` returns it.

    >>> client_identity({"subject": ((("commonName", "ann"),),), "subjectAltName": (("DNS", "a.test"),)})
    b'a.test'
    """
    if not certificate:
        return b""
    names = certificate.get("subjectAltName", ())
    for kind in ("email", "DNS"):
        for found, name in names:
            if found == kind:
                return str(name).encode()
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value).encode()
    return b""
