"""TLS contexts: made and checked at start, before the workers are forked."""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime, timedelta
from typing import Final

from blackhole.settings import OperatorError, Settings

YEAR: Final = timedelta(days=365)

MAX_PEM: Final = 1 << 20
"""Octets of a file that are searched for a certificate or a key."""


def make_context(cert: str, key: str) -> ssl.SSLContext:
    """Return a server's context from PEM files. With an empty `key`, `cert` contains the key too.

    It must be made before the fork: all workers then share the key of the session tickets, and a
    client may resume a session with any of them.

    Raises OperatorError (EX_CONFIG) when a file cannot be read or the two do not match.
    """
    for path in filter(None, (cert, key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise OperatorError(f"cannot read {path}: {error.strerror}", os.EX_CONFIG) from None
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    # The AEAD ciphers of TLS 1.2; TLS 1.3 has no others.
    made.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    # ALPACA attack: a client that offers "smtp" (IANA) can see that this is SMTP. Python's ssl accepts
    # clients that offer other protocols only, and answers them nothing.
    made.set_alpn_protocols(["smtp"])
    try:
        made.load_cert_chain(cert, key or None, password=_no_password)
    except ssl.SSLError as error:
        raise OperatorError(_certificate_problem(cert, key, error), os.EX_CONFIG) from None
    except ValueError as error:
        raise OperatorError(f"{key or cert}: {error}", os.EX_CONFIG) from None
    return made


def _certificate_problem(cert: str, key: str, error: ssl.SSLError) -> str:
    """Return why OpenSSL does not take two files; it says little about a part that is missing."""
    for path, part in ((cert, b"CERTIFICATE"), (key or cert, b"PRIVATE KEY")):
        with open(path, "rb") as file:
            if part + b"-----" not in file.read(MAX_PEM):
                return f"there is no {part.decode().lower()} in {path}; it must be in PEM"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the key in {key or cert} is not that of the certificate in {cert}"
    return f"cannot use {cert}{key and ' and ' + key}: {error.reason or error}"


def faulty_certificate(fault: str, settings: Settings) -> bytes:
    """Return a self-signed certificate with a fault (of CERTIFICATES) and its key, as PEM.

    Raises OperatorError (EX_CONFIG) without TLS, or if the package `cryptography` is not installed.
    """
    if not settings.ssl_cert:
        raise OperatorError(f'scenario: certificate = "{fault}" needs TLS; give ssl_cert too')
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise OperatorError(
            f'scenario: certificate = "{fault}" needs a package: pip install "blackhole-smtp[certs]"'
        ) from None
    name = "wrong-name.invalid" if fault == "wrong-name" else settings.hostname
    end = datetime.now(UTC) + (-YEAR if fault == "expired" else YEAR)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name[:64])])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - 2 * YEAR)
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def context_from_pem(pem: bytes) -> ssl.SSLContext:
    """Return a context with a certificate that `faulty_certificate` made."""
    # OpenSSL reads certificates from files only. This one is in memory.
    with open(os.memfd_create("certificate"), "wb") as file:
        file.write(pem)
        file.flush()
        return make_context(f"/proc/self/fd/{file.fileno()}", "")


def _no_password() -> str:
    """Raise ValueError for an encrypted key. Without this, OpenSSL would prompt on the terminal."""
    raise ValueError("the key is encrypted; Blackhole cannot ask for a password")
