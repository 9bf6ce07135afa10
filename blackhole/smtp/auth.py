"""The SASL mechanisms of AUTH: one row for each.

Sources: RFC 4954 (AUTH), RFC 4616 (PLAIN), RFC 2195 (CRAM-MD5), Google's XOAUTH2 protocol. LOGIN was never
more than a draft. A mechanism is a generator: it yields challenges and is sent responses, both without their
base64, and returns the credentials of the client, or the reply to responses that it cannot use.
"""

from __future__ import annotations

import binascii
import hmac
import re
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Final, NamedTuple

from blackhole.smtp import replies
from blackhole.smtp.replies import Reply


class Credentials(NamedTuple):
    """The user that a client says it is, and how to verify it."""

    user: bytes
    verify: Callable[[bytes], bool]
    """Returns whether the client knows this password."""
    failure_challenge: bytes = b""
    """A challenge that comes before a refusal; any response to it will do."""


Exchange = Generator[bytes, bytes, Credentials | Reply]

TOKEN: Final = re.compile(rb"user=([^\x01]*)\x01auth=Bearer +([^\x01]*)\x01\x01", re.IGNORECASE)

DIGEST: Final = re.compile(rb"(.*) ([0-9a-f]{32})", re.DOTALL)

NO_TOKEN: Final = b'{"status":"401","schemes":"bearer","scope":"https://mail.example/"}'


def plain(nonce: bytes) -> Exchange:
    """RFC 4616: one response with both the user and the password."""
    words = (yield b"").split(b"\0")
    if len(words) != 3:
        return replies.BAD_AUTH_RESPONSE
    # The authorization identity, the first word, makes no difference here.
    return Credentials(words[1], partial(hmac.compare_digest, words[2]))


def login(nonce: bytes) -> Exchange:
    """Ask for the user, then for the password."""
    user = yield b"Username:"
    password = yield b"Password:"
    return Credentials(user, partial(hmac.compare_digest, password))


def cram_md5(nonce: bytes) -> Exchange:
    """RFC 2195: the response is a digest of the challenge, keyed with the password."""
    match = DIGEST.fullmatch((yield nonce))
    if match is None:
        return replies.BAD_AUTH_RESPONSE
    user, digest = match.groups()

    def verify(password: bytes) -> bool:
        return hmac.compare_digest(hmac.new(password, nonce, "md5").hexdigest().encode(), digest)

    return Credentials(user, verify)


def xoauth2(nonce: bytes) -> Exchange:
    """Take the user and a bearer token, which is verified as a password."""
    match = TOKEN.fullmatch((yield b""))
    if match is None:
        return replies.BAD_AUTH_RESPONSE
    user, token = match.groups()
    return Credentials(user, partial(hmac.compare_digest, token), NO_TOKEN)


class Mechanism(NamedTuple):
    """A row of the table of mechanisms."""

    name: str
    begin: Callable[[bytes], Exchange]
    """Takes a nonce, and returns the exchange."""
    early: bool = True
    """The command may contain the first response (RFC 4954 4)."""


MECHANISMS: Final = (
    Mechanism("PLAIN", plain),
    Mechanism("LOGIN", login),
    Mechanism("CRAM-MD5", cram_md5, early=False),
    Mechanism("XOAUTH2", xoauth2),
)

BY_NAME: Final = {row.name.encode(): row for row in MECHANISMS}

PASS: Final = b"pass="
FAIL: Final = b"fail="
"""What a client writes, in upper or lower case, to be accepted or refused."""


def authenticate(passwords: Mapping[bytes, bytes] | None, credentials: Credentials) -> bool:
    """Return whether credentials are accepted. Without passwords, all that do not ask for a refusal are."""
    if passwords is None:
        return FAIL not in credentials.user.lower()
    password = passwords.get(credentials.user)
    return password is not None and credentials.verify(password)


def failure_challenge() -> Exchange:
    """Return the exchange that follows a failure challenge."""
    yield b""
    return replies.AUTHENTICATION_FAILED


def decoded(text: bytes) -> bytes | None:
    """Return what a client wrote in base64, or None if it is not base64."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return None


def challenge(text: bytes) -> Reply:
    """Return the reply with a challenge (RFC 4954 4)."""
    return Reply(334, "", binascii.b2a_base64(text, newline=False).decode())


def redacted(line: bytes) -> bytes:
    """Return an AUTH command for the log, without what stands behind the mechanism or in its place."""
    verb, *words = line.split()
    return b" ".join((verb, *(word for word in words[:1] if word.upper() in BY_NAME), b"..."))
