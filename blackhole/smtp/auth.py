"""The SASL mechanisms of AUTH: one row for each.

Source of the command: RFC 4954. A mechanism is a generator: it yields challenges and is sent responses, both
without their base64, and returns the credentials of the client, or the reply to responses that it cannot use.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Set
from functools import partial
from typing import Final, NamedTuple

from blackhole.smtp import replies, scram
from blackhole.smtp.choices import choose_keywords
from blackhole.smtp.replies import Reply


class AuthSetup(NamedTuple):
    """What an exchange begins with."""

    nonce: bytes
    """Printable text without a comma that is used once."""
    passwords: Mapping[bytes, bytes] | None = None
    """By user; None: every user is accepted."""
    client_identity: bytes = b""
    """The name in the client's certificate, if the TLS handshake has verified one."""


class Credentials(NamedTuple):
    """The user that a client says it is, and how to verify it."""

    user: bytes
    verify: Callable[[bytes], bool]
    """Returns whether the client knows this password."""
    failure_challenge: bytes = b""
    """A challenge that comes before a refusal; any response to it will do."""
    needs_password: bool = True
    """Only users of the auth file are accepted; else `verify` is asked about no password."""


Exchange = Generator[bytes, bytes, Credentials | Reply]

TOKEN: Final = re.compile(rb"user=([^\x01]*+)\x01auth=Bearer ++([^\x01]*+)\x01\x01", re.IGNORECASE)

OAUTH_MESSAGE: Final = re.compile(
    rb"[ny],(?:a=([^,\x01]*+))?,\x01(?:(?!auth=)[A-Za-z]++=[^\x01]*+\x01)*+auth=Bearer ++([^\x01]*+)\x01"
    rb"(?:[A-Za-z]++=[^\x01]*+\x01)*+\x01",
    re.IGNORECASE,
)
"""RFC 7628 3.1: a GS2 header, and keys with values, one of which is the token."""

GS2_HEADER: Final = re.compile(rb"([ny],(?:a=[^,]*+)?,)(n=([^,]++),r=([!-+\--~]++)(?:,.*+)?)", re.DOTALL)
"""RFC 5802 7: the header, and the first message of the client without it. No extension is known."""

DIGEST: Final = re.compile(rb"(.*) ([0-9a-f]{32})", re.DOTALL)

NO_TOKEN: Final = b'{"status":"401","schemes":"bearer","scope":"https://mail.example/"}'

INVALID_TOKEN: Final = b'{"status":"invalid_token","schemes":"bearer","scope":"https://mail.example/"}'
"""RFC 7628 3.2.2."""

MAX_TRACE: Final = 255
"""Characters of what an anonymous client says of itself (RFC 4505 2)."""


def plain(setup: AuthSetup) -> Exchange:
    """Take one response with both the user and the password (RFC 4616)."""
    words = (yield b"").split(b"\0")
    if len(words) != 3:
        return replies.BAD_AUTH_RESPONSE
    # The authorization identity, the first word, makes no difference here.
    return Credentials(words[1], partial(hmac.compare_digest, words[2]))


def login(setup: AuthSetup) -> Exchange:
    """Ask for the user, then for the password."""
    user = yield b"Username:"
    password = yield b"Password:"
    return Credentials(user, partial(hmac.compare_digest, password))


def cram_md5(setup: AuthSetup) -> Exchange:
    """Take a digest of the challenge, keyed with the password (RFC 2195)."""
    match = DIGEST.fullmatch((yield setup.nonce))
    if match is None:
        return replies.BAD_AUTH_RESPONSE
    user, digest = match.groups()

    def verify(password: bytes) -> bool:
        return hmac.compare_digest(hmac.new(password, setup.nonce, "md5").hexdigest().encode(), digest)

    return Credentials(user, verify)


def xoauth2(setup: AuthSetup) -> Exchange:
    """Take the user and a bearer token, which is verified as a password."""
    match = TOKEN.fullmatch((yield b""))
    if match is None:
        return replies.BAD_AUTH_RESPONSE
    user, token = match.groups()
    return Credentials(user, partial(hmac.compare_digest, token), NO_TOKEN)


def oauthbearer(setup: AuthSetup) -> Exchange:
    """Take a bearer token, which is verified as a password (RFC 7628).

    A client that does not name its user is the one whose token it has.
    """
    match = OAUTH_MESSAGE.fullmatch((yield b""))
    name = None if match is None else unescaped(match[1] or b"")
    if match is None or name is None:
        return replies.BAD_AUTH_RESPONSE
    token = match[2]
    if not name:
        owners = (
            user for user, known in (setup.passwords or {}).items() if hmac.compare_digest(known, token)
        )
        name = next(owners, b"")
    return Credentials(name, partial(hmac.compare_digest, token), INVALID_TOKEN)


def scram_sha_256(setup: AuthSetup) -> Exchange:
    """Let both sides prove that they know the password, which neither sends (RFC 7677)."""
    match = GS2_HEADER.fullmatch((yield b""))
    user = None if match is None else unescaped(match[3])
    if match is None or user is None:
        return replies.BAD_AUTH_RESPONSE
    header, first, _, client_nonce = match.groups()
    nonce = client_nonce + setup.nonce
    salt = hashlib.sha256(user).digest()[:16]
    server_first = b"r=%b,s=%b,i=%d" % (nonce, scram.to_base64(salt), scram.ITERATIONS)
    final = yield server_first
    without_proof, _, proof_text = final.rpartition(b",p=")
    found, proof = scram.attributes(without_proof), decoded(proof_text)
    if found.get(b"c") != scram.to_base64(header) or found.get(b"r") != nonce or proof is None:
        return replies.BAD_AUTH_RESPONSE
    messages = b",".join((first, server_first, without_proof))
    password = (setup.passwords or {}).get(user)
    if password is None:
        return Credentials(user, never)
    keys = scram.scram_keys("sha256", password, salt)
    if not scram.is_proof("sha256", keys, messages, proof):
        return Credentials(user, never)
    # RFC 4954 has no data with a success, so that the client answers the signature with an empty response.
    yield b"v=" + scram.server_signature("sha256", keys, messages)
    return Credentials(user, always_true)


def anonymous(setup: AuthSetup) -> Exchange:
    """Accept every client, which may say who it is (RFC 4505)."""
    trace = yield b""
    if len(trace) > 4 * MAX_TRACE:
        return replies.BAD_AUTH_RESPONSE
    return Credentials(b"anonymous", always_true, needs_password=False)


def external(setup: AuthSetup) -> Exchange:
    """Accept the client as the one that its TLS certificate names (RFC 4422 A)."""
    identity = setup.client_identity
    name = (yield b"") or identity

    def verify(password: bytes) -> bool:
        return bool(identity) and name == identity and identity in (setup.passwords or {})

    return Credentials(name, verify, needs_password=False)


def never(password: bytes) -> bool:
    """Accept no password."""
    return False


def always_true(password: bytes) -> bool:
    """Accept what has been verified already."""
    return True


def unescaped(name: bytes) -> bytes | None:
    """Return a name with its commas and equals signs (RFC 5802 5.1); None for a wrong one.

    >>> unescaped(b"a=2Cb=3Dc"), unescaped(b"a=b")
    (b'a,b=c', None)
    """
    if re.search(rb"=(?!2C|3D)", name):
        return None
    return name.replace(b"=2C", b",").replace(b"=3D", b"=")


class Mechanism(NamedTuple):
    """A row of the table of mechanisms."""

    name: str
    begin: Callable[[AuthSetup], Exchange]
    source: str
    verified: str
    """What is compared with a file of users."""
    early: bool = True
    """The command may contain the first response (RFC 4954 4)."""
    by_default: bool = True
    """Offered unless the operator says which mechanisms are."""
    needs_passwords: bool = False
    """The server has to know the password of each user."""


MECHANISMS: Final = (
    Mechanism("PLAIN", plain, "RFC 4616", "the password; the authorization identity is ignored"),
    Mechanism("LOGIN", login, "an expired Internet-Draft", "the password"),
    Mechanism("CRAM-MD5", cram_md5, "RFC 2195", "the digest made with the password", early=False),
    Mechanism("XOAUTH2", xoauth2, "Google", "the token, which must equal the password in the file"),
    Mechanism("OAUTHBEARER", oauthbearer, "RFC 7628", "the token, which must equal the password in the file"),
    Mechanism(
        "SCRAM-SHA-256",
        scram_sha_256,
        "RFC 7677",
        "the proof made with the password; it needs a file of users",
        needs_passwords=True,
    ),
    Mechanism("ANONYMOUS", anonymous, "RFC 4505", "nothing: everybody is accepted", by_default=False),
    Mechanism(
        "EXTERNAL",
        external,
        "RFC 4422",
        "the name in the client's certificate, which must be a user",
        by_default=False,
    ),
)

BY_NAME: Final = {row.name.encode(): row for row in MECHANISMS}

MECHANISM_DEFAULTS: Final = frozenset(row.name for row in MECHANISMS if row.by_default)


def choose_mechanisms(words: Iterable[str], has_passwords: bool) -> frozenset[str]:
    """Return the names of the mechanisms that a list names, as `choose_keywords`.

    Those that need passwords are left out of "default" and "all" where there are none. Raises ValueError for
    an unknown name, and for one that cannot work.
    """
    known = [row.name for row in MECHANISMS]
    needy = frozenset(row.name for row in MECHANISMS if row.needs_passwords and not has_passwords)
    chosen = choose_keywords(words, known, MECHANISM_DEFAULTS)
    named = needy.intersection(word.upper() for word in words)
    if named:
        raise ValueError(f"{min(named)} needs the passwords of a file: auth = FILE")
    return chosen - needy


def offered_mechanisms(
    chosen: Set[str] | None, passwords: Mapping[bytes, bytes] | None
) -> dict[bytes, Mechanism]:
    """Return the mechanisms of a listener by name; `chosen` is None for those that are offered by default."""
    names = choose_mechanisms(["default"], passwords is not None) if chosen is None else chosen
    return {name: row for name, row in BY_NAME.items() if row.name in names}


PASS: Final = b"pass="
FAIL: Final = b"fail="
"""What a client writes, in upper or lower case, to be accepted or refused."""


def authenticate(passwords: Mapping[bytes, bytes] | None, credentials: Credentials) -> bool:
    """Return whether credentials are accepted. Without passwords, all that do not ask for a refusal are."""
    if passwords is None:
        return FAIL not in credentials.user.lower()
    if not credentials.needs_password:
        return credentials.verify(b"")
    password = passwords.get(credentials.user)
    return password is not None and credentials.verify(password)


def failure_challenge(refusal: Reply) -> Exchange:
    """Return the exchange that follows a failure challenge, and ends with the refusal."""
    yield b""
    return refusal


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
