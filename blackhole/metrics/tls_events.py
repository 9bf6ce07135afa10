"""What is counted of TLS handshakes: why they failed, and what senders did at each entry of the TLS menu."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ALERTS: Final[Mapping[str, str]] = {
    "bad_certificate": "the client refused the certificate",
    "unsupported_certificate": "the client refused the type of the certificate, or what it is for",
    "certificate_revoked": "the client refused the certificate as revoked",
    "certificate_expired": "the client refused the certificate as expired",
    "certificate_unknown": "the client refused the certificate for another reason",
    "unknown_ca": "the client does not know the authority of the certificate",
    "access_denied": "the client refused to go on",
    "unrecognized_name": "the client refused the name",
    "protocol_version": "the client refused the version of TLS",
    "insufficient_security": "the client refused the ciphers as too weak",
    "handshake_failure": "the client could not agree",
    "inappropriate_fallback": "the client offered less than it could",
    "illegal_parameter": "the client refused a value",
    "decrypt_error": "the client could not verify a signature",
    "internal_error": "the client failed",
    "user_canceled": "the client gave up",
    "other_alert": "the client sent another alert",
}
"""Alert of a client (RFC 8446 6.2) -> what it means."""

CLIENT_FAILURES: Final[Mapping[str, str]] = {
    **ALERTS,
    "closed": "the client closed the connection without an alert",
    "reset": "the client reset the connection",
}
"""Why a handshake failed that the client ended."""

TLS_FAILURES: Final[Mapping[str, str]] = {
    **CLIENT_FAILURES,
    "no_common_version": "client and server have no version of TLS in common",
    "no_common_cipher": "client and server have no cipher in common",
    "no_client_certificate": "the client has no certificate, which the server requires",
    "untrusted_client_certificate": "the certificate of the client is not of an authority in client_ca",
    "not_tls": "the client sent something that is not TLS",
    "other": "another reason, which is in the log",
}
"""Why a handshake failed -> what that means."""

ENTRY_RESULTS: Final[Mapping[str, str]] = {
    "failed": "the handshake failed",
    "left": "the handshake succeeded, and the connection ended without a message",
    "sent": "the handshake succeeded, and the client sent a message",
}
"""What a client did at an entry of the TLS menu -> its meaning."""


def failure_cell(reason: str) -> str:
    """Return the name of the counter of handshakes that failed for this reason."""
    return f"tls_failed_{reason}"


def entry_cell(entry: str, result: str) -> str:
    """Return the name of the counter of connections that ended with this result at an entry of the menu."""
    return f"tls_menu_{entry}_{result}"
