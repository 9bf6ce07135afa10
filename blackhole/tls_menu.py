"""The TLS menu: servers whose TLS is wrong, or unusual, in one way each. One row for each entry.

A listener, a rule or the name that a client asks for (SNI) selects an entry. The options, the keys of rules,
the certificates that are issued, the figures and the documents read this table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

AUTO_CERTIFICATE: Final = "auto"
"""Value of `ssl_cert` for a certificate that is issued at start: GOOD."""

MENU_BY_NAME_ASKED: Final = "sni"
"""Value of `tls_menu` that lets clients select an entry by the name that they ask for."""

NO_ENTRY: Final = "off"
"""Value of `tls_menu` for TLS without an entry."""

GOOD: Final = "good"
"""The certificate that has no fault."""

VERSION_NUMBERS: Final = ("1.0", "1.1", "1.2", "1.3")

CIPHERS: Final = re.compile(r"[A-Za-z0-9@=+!:,._-]{1,1024}")
"""Matches what may be a cipher list of OpenSSL (openssl-ciphers(1))."""

DEFAULT_TLS_MIN: Final = "1.2"

CLIENT_CERTIFICATE: Final[Mapping[str, str]] = {
    "off": "clients are not asked for a certificate",
    "ask": "clients are asked for a certificate, and may have none",
    "require": "clients without a certificate fail the handshake",
}
"""Every way to treat certificates of clients."""

HANDSHAKE_FAULTS: Final[Mapping[str, str]] = {
    "close-in-handshake": "closes the connection when the ClientHello has come",
    "reset-in-handshake": "the same, with a TCP reset",
    "stall-in-handshake": "sends nothing after the ClientHello; the connection closes after one hour",
    "no-close-notify": "closes the connection, whenever that is, without close_notify",
}
"""Faults of rules for the phase STARTTLS alone -> what happens."""


class TLSParameters(NamedTuple):
    """How the server does its side of TLS. What is empty is as the listener has it, or the default.

    >>> TLSParameters(tls_max="1.2").over(TLSParameters(certificate="expired", tls_max="1.3"))
    TLSParameters(certificate='expired', tls_min='', tls_max='1.2', tls_ciphers='', client_cert='', fault='')
    """

    certificate: str = ""
    """A name of CERTIFICATES."""
    tls_min: str = ""
    tls_max: str = ""
    """One of VERSION_NUMBERS."""
    tls_ciphers: str = ""
    """A cipher list of OpenSSL, for TLS 1.2 and older."""
    client_cert: str = ""
    """One of CLIENT_CERTIFICATE."""
    fault: str = ""
    """One of HANDSHAKE_FAULTS."""

    def over(self, below: TLSParameters) -> TLSParameters:
        """Return these parameters, with those of `below` in place of what is empty."""
        return TLSParameters(*(mine or theirs for mine, theirs in zip(self, below, strict=True)))

    def __str__(self) -> str:
        """Return what is not empty, as an operator would write it."""
        return ", ".join(f"{name} {value}" for name, value in zip(self._fields, self, strict=True) if value)


USUAL_TLS: Final = TLSParameters()


class MenuEntry(NamedTuple):
    """A row of the menu."""

    name: str
    """Also the first label of the names by which clients select it."""
    meaning: str
    """What the server does: one phrase."""
    source: str
    """Where the rule is that it breaks, or what it is about."""
    parameters: TLSParameters


def _certificate(name: str, meaning: str, source: str) -> MenuEntry:
    return MenuEntry(name, meaning, source, TLSParameters(certificate=name))


def _version(version: str, source: str) -> MenuEntry:
    name = f"tls{version.replace('.', '-')}"
    parameters = TLSParameters(tls_min=version, tls_max=version)
    return MenuEntry(name, f"speaks TLS {version} only", source, parameters)


CBC_CIPHERS: Final = "ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA"

# fmt: off
TLS_MENU: Final = (
    _certificate(GOOD, "has a certificate without a fault, and sends the whole chain", "RFC 5280 6.1"),
    _certificate("self-signed", "has a certificate that is its own issuer", "RFC 5280 6.1"),
    _certificate("untrusted", "has a certificate of an authority that nobody trusts", "RFC 5280 6.1"),
    _certificate("no-intermediate", "does not send the certificate of the intermediate authority",
                 "RFC 8446 4.4.2"),
    _certificate("expired", "has a certificate that has been out of date for a year", "RFC 5280 4.1.2.5"),
    _certificate("not-yet-valid", "has a certificate that will be valid in a year", "RFC 5280 4.1.2.5"),
    _certificate("wrong-name", "has a certificate for another host", "RFC 9525 6.3"),
    _certificate("no-san", "has a certificate with the host in the common name only", "RFC 9525 6.3"),
    _certificate("wrong-usage", "has a certificate for clients", "RFC 5280 4.2.1.12"),
    _version("1.0", "RFC 8996 4"),
    _version("1.1", "RFC 8996 5"),
    _version("1.2", "RFC 5246"),
    _version("1.3", "RFC 8446"),
    MenuEntry("cbc-cipher", "speaks TLS 1.2 with AES-CBC and SHA-1 only", "RFC 9325 4.2",
              TLSParameters(tls_min="1.2", tls_max="1.2", tls_ciphers=CBC_CIPHERS)),
    MenuEntry("client-cert-asked", "asks for a certificate of the client", "RFC 8446 4.3.2",
              TLSParameters(client_cert="ask")),
    MenuEntry("client-cert-required", "requires a certificate of the client", "RFC 8446 4.4.2.4",
              TLSParameters(client_cert="require")),
    *(
        MenuEntry(fault, meaning, source, TLSParameters(fault=fault))
        for (fault, meaning), source in zip(
            HANDSHAKE_FAULTS.items(),
            ("RFC 8446 6.1", "RFC 9293 3.5.2", "RFC 5321 4.5.3.2", "RFC 8446 6.1"),
            strict=True,
        )
    ),
)
# fmt: on

CERTIFICATES: Final = {entry.name: entry.meaning for entry in TLS_MENU if entry.parameters.certificate}
"""Name of a certificate that is issued -> what there is to say about it."""

ENTRIES: Final = {entry.name: entry for entry in TLS_MENU}

_NAMES: Final = {entry.parameters: entry.name for entry in TLS_MENU}


def entry_name(parameters: TLSParameters) -> str:
    """Return the name of the entry that these parameters are; that of their certificate, if it has a fault.

    Empty if they are none.

    >>> entry_name(TLSParameters("expired", tls_max="1.2")), entry_name(TLSParameters(GOOD, tls_max="1.2"))
    ('expired', '')
    >>> entry_name(TLSParameters(GOOD, "1.2", "1.2")), entry_name(TLSParameters(GOOD))
    ('tls1-2', 'good')
    """
    certificate = parameters.certificate
    if parameters in _NAMES:
        return _NAMES[parameters]
    return _NAMES.get(parameters._replace(certificate=""), "") if certificate == GOOD else certificate
