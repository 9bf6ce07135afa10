"""The ClientHello of a TLS handshake, as far as it is read before OpenSSL does: the name of the server.

The versions, the ciphers and whether to ask for a certificate cannot be changed any more when OpenSSL tells a
server the name that a client asks for.
"""

from __future__ import annotations

from typing import Final

RECORD_HEADER: Final = 5
"""Octets before the fragment of a TLS record: the type, the version twice, the length (RFC 8446 5.1)."""
CLIENT_HELLO: Final = 1
"""Type of the handshake message (RFC 8446 4)."""

BEFORE_SESSION_ID: Final = RECORD_HEADER + 4 + 2 + 32
"""Octets of the headers of record and message, of the version and of the random number."""

SERVER_NAME: Final = 0
"""Type of the extension (RFC 6066 3)."""

MAX_NAME: Final = 255


def server_name(record: bytes) -> bytes:
    """Return the name of the server that a client asks for in its first record (SNI).

    Empty if it asks for none, and if the ClientHello is not in one record, or is none.

    >>> import ssl
    >>> sent = ssl.MemoryBIO()
    >>> client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="mx.test")
    >>> try:
    ...     client.do_handshake()
    ... except ssl.SSLWantReadError:
    ...     server_name(sent.read())
    b'mx.test'
    """
    if len(record) < BEFORE_SESSION_ID or record[RECORD_HEADER] != CLIENT_HELLO:
        return b""
    try:
        _, at = _vector(record, BEFORE_SESSION_ID, 1)  # the id of the session
        _, at = _vector(record, at, 2)  # ciphers
        _, at = _vector(record, at, 1)  # methods of compression
        extensions, _ = _vector(record, at, 2)
        at = 0
        while at < len(extensions):
            kind = extensions[at : at + 2]
            content, at = _vector(extensions, at + 2, 2)
            if int.from_bytes(kind) == SERVER_NAME:
                names, _ = _vector(content, 0, 2)
                name, _ = _vector(names, 1, 2)  # behind the type of the name, of which there is one
                return name[:MAX_NAME]
    except ValueError:
        pass
    return b""


def _vector(octets: bytes, at: int, size: int) -> tuple[bytes, int]:
    """Return a vector whose length has `size` octets, and where it ends (RFC 8446 3.4).

    Raises ValueError if it is not whole.
    """
    begin = at + size
    end = begin + int.from_bytes(octets[at:begin])
    if end > len(octets):
        raise ValueError("a vector that is not whole")
    return octets[begin:end], end
