"""TLS contexts: made of certificates in PEM, and checked at start, before the workers are forked."""

from __future__ import annotations

import os
import ssl
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from blackhole.settings import OperatorError
from blackhole.tls_menu import (
    DEFAULT_TLS_MIN,
    GOOD,
    USUAL_TLS,
    VERSION_NUMBERS,
    TLSParameters,
)

MODERN_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""The AEAD ciphers of TLS 1.2; TLS 1.3 has no others."""

OLD_CIPHERS: Final = "DEFAULT:@SECLEVEL=0"
"""Ciphers where TLS 1.0 or 1.1 is asked for: OpenSSL does neither above level 0."""

VERSIONS: Final = dict(
    zip(
        VERSION_NUMBERS,
        (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3),
        strict=True,
    )
)

VERIFY_MODES: Final = {
    "": ssl.CERT_NONE,
    "off": ssl.CERT_NONE,
    "ask": ssl.CERT_OPTIONAL,
    "require": ssl.CERT_REQUIRED,
}


class PEMFile(NamedTuple):
    """A file that was read."""

    path: str
    """Where it was, for errors."""
    octets: bytes

    def has(self, part: str) -> bool:
        """Return whether there is a `certificate` or a `private key` in it."""
        return b"%b-----" % part.upper().encode() in self.octets

    @property
    def first_certificate(self) -> str:
        """The first certificate in it, as PEM: that of the server. There must be one."""
        begin, end = (f"-----{word} CERTIFICATE-----".encode() for word in ("BEGIN", "END"))
        start = self.octets.index(begin)
        return self.octets[start : self.octets.index(end, start) + len(end)].decode("ascii") + "\n"


class CertificateAndKey(NamedTuple):
    """The certificate of a server, with its chain, and its key. They may be the same file."""

    cert: PEMFile
    key: PEMFile


def make_context(
    certificate: CertificateAndKey,
    parameters: TLSParameters = USUAL_TLS,
    client_ca: PEMFile | None = None,
    protocol: str = "smtp",
) -> ssl.SSLContext:
    """Return a server's context. `client_ca` has the authorities that sign certificates of clients.

    `protocol` is the name that the server has for what it speaks (RFC 7301 6).

    It must be made before the fork: all workers then share the key of the session tickets, and a
    client may resume a session with any of them.

    Raises OperatorError (EX_CONFIG) when certificate and key do not match, or if OpenSSL refuses what the
    parameters ask for.
    """
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    _set_versions(made, parameters)
    # ALPACA attack: a client that offers "smtp" (IANA) can see that this is SMTP. Python's ssl accepts
    # clients that offer other protocols only, and answers them nothing.
    made.set_alpn_protocols([protocol])
    _load_certificate(made, certificate)
    if parameters.tls_min or parameters.tls_max or parameters.tls_ciphers:
        _check_versions(made, parameters)
    made.verify_mode = VERIFY_MODES[parameters.client_cert]
    if made.verify_mode != ssl.CERT_NONE:
        _load_authorities(made, client_ca)
    if parameters.certificate not in ("", GOOD) or made.verify_mode != ssl.CERT_NONE:
        # Who resumes a session looks at no certificate.
        made.options |= ssl.OP_NO_TICKET
        made.num_tickets = 0
    return made


def _set_versions(made: ssl.SSLContext, parameters: TLSParameters) -> None:
    """Set versions and ciphers."""
    greatest = parameters.tls_max or VERSION_NUMBERS[-1]
    least = parameters.tls_min or min(DEFAULT_TLS_MIN, greatest)
    if least > greatest:
        raise OperatorError(f"tls_min {least} is above tls_max {greatest}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TLS 1.0 and 1.1
        made.minimum_version = VERSIONS[least]
        made.maximum_version = VERSIONS[greatest]
    ciphers = parameters.tls_ciphers or (MODERN_CIPHERS if least >= DEFAULT_TLS_MIN else OLD_CIPHERS)
    try:
        made.set_ciphers(ciphers)
    except ssl.SSLError:
        raise OperatorError(f"tls_ciphers {ciphers}: OpenSSL has none of these ciphers") from None


def _check_versions(made: ssl.SSLContext, parameters: TLSParameters) -> None:
    """Raise OperatorError if no client could agree with the server on its least or its greatest version."""
    for version in (made.minimum_version, made.maximum_version):
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        client.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            client.minimum_version = client.maximum_version = version
        try:
            _shake_hands(client, made)
        except ssl.SSLError as error:
            hint = ""
            if parameters.tls_ciphers and version < ssl.TLSVersion.TLSv1_2:
                hint = "; TLS 1.0 and 1.1 need :@SECLEVEL=0 at the end of tls_ciphers"
            raise OperatorError(
                f"{parameters}: OpenSSL ({ssl.OPENSSL_VERSION}) cannot do this with the certificate:"
                f" {_reason(error)}{hint}"
            ) from None


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """Do a handshake in memory. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for side in (*sides, *sides):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()


def _load_certificate(made: ssl.SSLContext, certificate: CertificateAndKey) -> None:
    """Load certificate and key. Raises OperatorError."""
    cert, key = certificate
    try:
        # OpenSSL reads certificates from files only.
        with _in_memory(cert.octets) as cert_path, _in_memory(key.octets) as key_path:
            made.load_cert_chain(cert_path, key_path, password=_no_password)
    except ssl.SSLError as error:
        raise OperatorError(_certificate_problem(certificate, error)) from None
    except ValueError as error:
        raise OperatorError(f"{key.path}: {error}") from None


def _load_authorities(made: ssl.SSLContext, file: PEMFile | None) -> None:
    """Load the authorities that sign certificates of clients. Raises OperatorError."""
    assert file is not None
    try:
        made.load_verify_locations(cadata=file.octets.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise OperatorError(f"there is no certificate in {file.path}; it must be in PEM") from None


@contextmanager
def _in_memory(octets: bytes) -> Iterator[str]:
    """Have a path at which these octets can be read."""
    with open(os.memfd_create("pem", os.MFD_CLOEXEC), "wb", buffering=0) as file:
        file.write(octets)
        yield f"/proc/self/fd/{file.fileno()}"


def _certificate_problem(certificate: CertificateAndKey, error: ssl.SSLError) -> str:
    """Return why OpenSSL does not take two files; it says little about a part that is missing."""
    cert, key = certificate
    for file, part in ((cert, "certificate"), (key, "private key")):
        if not file.has(part):
            return f"there is no {part} in {file.path}; it must be in PEM"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the key in {key.path} is not that of the certificate in {cert.path}"
    both = cert.path if cert.path == key.path else f"{cert.path} and {key.path}"
    return f"cannot use {both}: {_reason(error)}"


def _reason(error: ssl.SSLError) -> str:
    return str(getattr(error, "reason", None) or error)


def _no_password() -> str:
    """Raise ValueError for an encrypted key. Without this, OpenSSL would prompt on the terminal."""
    raise ValueError("the key is encrypted; Blackhole cannot ask for a password")


class TLSContexts:
    """The contexts that a listener has: its own, and others for rules and entries of the menu.

    Each is made when it is first asked for. `menu` has the certificates of the menu as PEM, by name, as far
    as they were issued. `base` is how the listener does TLS where nothing else is asked for.
    """

    def __init__(
        self,
        certificate: CertificateAndKey | None,
        base: TLSParameters = USUAL_TLS,
        menu: Mapping[str, bytes] = {},
        client_ca: PEMFile | None = None,
    ) -> None:
        self._certificate: Final = certificate
        self.base: Final = base
        self._menu: Final = dict(menu)
        self._client_ca: Final = client_ca
        self._made: Final[dict[TLSParameters, ssl.SSLContext]] = {}
        self.default: Final = self.get(USUAL_TLS)
        """The listener's own."""
        self.entries: Final[dict[str, TLSParameters]] = {}
        """The entries of the menu that clients may select by the name that they ask for."""

    @property
    def note(self) -> str:
        """What is unusual about them, as text behind what else there is to say of a listener."""
        parts = [str(self.base)] if self.base != USUAL_TLS else []
        parts += ["menu by name"] if self.entries else []
        return f" ({', '.join(parts)})" if parts else ""

    def get(self, parameters: TLSParameters) -> ssl.SSLContext:
        """Return the context for what a rule or an entry wants. Raises OperatorError, as `make_context`."""
        wanted = parameters.over(self.base)._replace(fault="")
        if wanted not in self._made:
            self._made[wanted] = make_context(self._certificate_of(wanted), wanted, self._client_ca)
        return self._made[wanted]

    def add(self, menu: Mapping[str, bytes]) -> None:
        """Take in certificates of the menu that were issued later; those that are there stay."""
        self._menu.update((name, pem) for name, pem in menu.items() if name not in self._menu)

    def _certificate_of(self, parameters: TLSParameters) -> CertificateAndKey:
        if not parameters.certificate:
            assert self._certificate is not None
            return self._certificate
        file = PEMFile(f"the certificate {parameters.certificate}", self._menu[parameters.certificate])
        return CertificateAndKey(file, file)
