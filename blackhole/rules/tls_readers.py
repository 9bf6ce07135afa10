"""Readers of the values in a scenario file that say how the TLS handshake is done."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from blackhole.tls_menu import CERTIFICATES, CIPHERS, CLIENT_CERTIFICATE, VERSION_NUMBERS
from blackhole.values import expected, unknown_word


def read_certificate(value: Any) -> str:
    return _read_word(value, CERTIFICATES)


def read_tls_version(value: Any) -> str:
    return _read_word(value, VERSION_NUMBERS)


def read_client_certificate(value: Any) -> str:
    return _read_word(value, CLIENT_CERTIFICATE)


def _read_word(value: Any, known: Collection[str]) -> str:
    """Read one of these words."""
    if isinstance(value, str) and value in known:
        return value
    raise unknown_word(value, known)


def read_ciphers(value: Any) -> str:
    """Read a cipher list of OpenSSL. Whether there are such ciphers is found out when a context is made."""
    if isinstance(value, str) and CIPHERS.fullmatch(value):
        return value
    raise expected("a cipher list of OpenSSL, as ECDHE+AESGCM", value)
