"""The TLS context: made from files once, checked at start, before the fork."""

from __future__ import annotations

import os
import ssl

from blackhole.settings import OperatorError


def context(cert: str, key: str) -> ssl.SSLContext:
    """A server's context from PEM files; an empty `key` means that it stands in `cert` too.

    It has to be made before the fork: then all workers share the key of the session
    tickets, and a client may resume with any of them.

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
    # ALPACA: tell clients of other protocols that this is none of theirs (IANA: "smtp").
    made.set_alpn_protocols(["smtp"])
    try:
        made.load_cert_chain(cert, key or None, password=_no_password)
    except ssl.SSLError as error:
        files = f"{cert} and {key} are" if key else f"{cert} is"
        raise OperatorError(
            f"{files} not a certificate and its key: {error.reason or error}", os.EX_CONFIG
        ) from None
    except ValueError as error:
        raise OperatorError(f"{key or cert}: {error}", os.EX_CONFIG) from None
    return made


def _no_password() -> str:
    """Asked for by OpenSSL when a key is encrypted; without this it would prompt on the terminal."""
    raise ValueError("the key is encrypted; Blackhole cannot ask for a password")
