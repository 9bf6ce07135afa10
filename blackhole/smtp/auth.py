"""Mechanisms of AUTH: one row for each, with what it asks a client and what it makes of the answers.

Sources: RFC 4954 (AUTH), RFC 4616 (PLAIN), RFC 2195 (CRAM-MD5), Google's XOAUTH2 protocol. LOGIN
was never more than a draft. A mechanism is a generator: it yields challenges, is sent responses,
both without their base64, and returns a claim, or what is to be said in place of judging one.
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
    """Who a client says it is."""

    user: bytes
    proves: Callable[[bytes], bool]
    """Whether it knows this password."""
    failure_challenge: bytes = b""
    """What a refusal is preceded by: one more challenge, to which any response will do."""


Exchange = Generator[bytes, bytes, Credentials | Reply]

TOKEN: Final = re.compile(rb"user=([^\x01]+)\x01auth=Bearer +([^\x01]+)\x01\x01", re.IGNORECASE)

DIGEST: Final = re.compile(rb"(.+) ([0-9a-f]{32})", re.DOTALL)

NO_TOKEN: Final = b'{"status":"401","schemes":"bearer","scope":"https://mail.example/"}'


def plain(nonce: bytes) -> Exchange:
    words = (yield b"").split(b"\0")
    if len(words) != 3 or not words[1]:
        return replies.BAD_AUTH_RESPONSE
    # The first word, whom to act for, makes no difference: all mail goes the same way.
    return Credentials(words[1], partial(hmac.compare_digest, words[2]))


def login(nonce: bytes) -> Exchange:
    user = yield b"Username:"
    password = yield b"Password:"
    return Credentials(user, partial(hmac.compare_digest, password))


def cram_md5(nonce: bytes) -> Exchange:
    match = DIGEST.fullmatch((yield nonce))
    if match is None:
        return replies.BAD_AUTH_RESPONSE
    user, digest = match.groups()

    def proves(password: bytes) -> bool:
        return hmac.compare_digest(hmac.new(password, nonce, "md5").hexdigest().encode(), digest)

    return Credentials(user, proves)


def xoauth2(nonce: bytes) -> Exchange:
    match = TOKEN.fullmatch((yield b""))
    if match is None:
        return replies.BAD_AUTH_RESPONSE
    user, token = match.groups()
    return Credentials(user, partial(hmac.compare_digest, token), NO_TOKEN)


class Mechanism(NamedTuple):
    """A row."""

    name: str
    begin: Callable[[bytes], Exchange]
    """Takes a text that was never used before."""
    early: bool = True
    """The first response may stand in the command (RFC 4954 4)."""


MECHANISMS: Final = (
    Mechanism("PLAIN", plain),
    Mechanism("LOGIN", login),
    Mechanism("CRAM-MD5", cram_md5, early=False),
    Mechanism("XOAUTH2", xoauth2),
)

BY_NAME: Final = {row.name.encode(): row for row in MECHANISMS}

PASS: Final = b"pass="
FAIL: Final = b"fail="
"""What a client says, in either case of letters, that wants to be answered so."""


def authenticate(passwords: Mapping[bytes, bytes] | None, claim: Credentials) -> bool:
    """Whether a client is let in; without a list of passwords anybody is who does not ask for a refusal."""
    if passwords is None:
        return FAIL not in claim.user.lower()
    password = passwords.get(claim.user)
    return password is not None and claim.proves(password)


def failure_challenge() -> Exchange:
    """What becomes of a client that was told why it is not let in."""
    yield b""
    return replies.AUTHENTICATION_FAILED


def decoded(text: bytes) -> bytes | None:
    """What a client wrote in base64; None if it is none."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return None


def challenge(text: bytes) -> Reply:
    """The reply that asks for a response."""
    return Reply(334, "", binascii.b2a_base64(text, newline=False).decode())


def redacted(line: bytes) -> bytes:
    """An AUTH command for the log: what stands behind the mechanism, or in its place, is a secret."""
    verb, *words = line.split()
    return b" ".join((verb, *(word for word in words[:1] if word.upper() in BY_NAME), b"..."))
