"""The verification of DKIM signatures (RFC 6376 6.1), with keys that were given."""

from __future__ import annotations

import hashlib
from binascii import Error, a2b_base64
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, Protocol

from blackhole.messages.canonical_form import canonical_body, canonical_field, raw_fields, with_crlf
from blackhole.messages.header_fields import ParsedHeader
from blackhole.messages.mime_structure import MessageFault
from blackhole.messages.signature_tags import (
    MAX_SIGNATURE_OCTETS,
    compact,
    parse_tags,
    signature_fault,
    signed_fields,
)

MAX_VERIFIED_SIGNATURES: Final = 3
"""Signatures of a message that are verified."""

LEAST_BITS: Final = 1024
"""Bits of an RSA key, at least (RFC 8301 3.2)."""

RSA: Final = b"rsa"
ED25519: Final = b"ed25519"


class SigningKey(Protocol):
    """A public key, as a domain publishes it."""

    kind: bytes
    """RSA or ED25519."""
    bits: int
    fault: str
    """Why no signature can be verified with it, as one that was revoked; empty for a key of use."""

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Return whether a signature with SHA-256 over these data was made with the key."""


class AwaitedKey:
    """A key that was asked for, and that is not known yet."""

    kind = b""
    bits = 0
    fault = "the key has not come"

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Return that no signature was made with it."""
        return False


AWAITED_KEY: Final[SigningKey] = AwaitedKey()


class DKIMKeys(Protocol):
    """Public keys by the name under which they are published, such as s._domainkey.a.test, in lower case."""

    def get(self, name: bytes, /) -> SigningKey | None:
        """Return the key with a name; None if it is not known, AWAITED_KEY if it may be known soon."""


class MessageSignature(NamedTuple):
    """A signature of a message, and what is needed to verify it once its key is known."""

    key_name: bytes
    algorithm: bytes
    has_body_hash: bool
    """Whether bh= is the hash of the body."""
    value: bytes | None
    """None if it is not well formed."""
    data: bytes
    """What was signed."""

    def faults(self, key: SigningKey) -> Iterator[MessageFault]:
        """Yield what is wrong with the signature, by its key."""
        if not self.has_body_hash:
            yield MessageFault("bad-body-hash", "bh= is not the hash of the body")
        if key.fault or key.kind + b"-sha256" != self.algorithm:
            yield MessageFault("bad-signature", key.fault or "the key is of another kind")
            return
        if key.kind == RSA and key.bits < LEAST_BITS:
            yield MessageFault("weak-dkim-key", f"{key.bits} bits")
        if self.value is None or not key.verifies(self.value, self.data):
            yield MessageFault("bad-signature", "b= does not belong to the fields that h= names")


class SignatureVerification:
    """Verifies the signatures of one message, which is there as a whole."""

    def __init__(self, text: bytes, header: ParsedHeader, keys: DKIMKeys) -> None:
        self._keys: Final = keys
        self._fields: Final = raw_fields(with_crlf(text[: header.end]).removesuffix(b"\r\n"))
        self._body: Final = with_crlf(text[header.end :])
        self._bodies: Final[dict[bool, bytes]] = {}
        self.verified = 0
        """Signatures of which the key is known, and that were verified."""
        self.awaiting: Final[list[MessageSignature]] = []
        """Signatures whose keys were asked for."""

    def faults(self) -> Iterator[MessageFault]:
        """Yield what is wrong with the signatures whose tags are right and whose keys are known."""
        signatures = [one for one in self._fields if one[0].strip().lower() == b"dkim-signature"]
        for name, value in signatures[:MAX_VERIFIED_SIGNATURES]:
            if len(value) > MAX_SIGNATURE_OCTETS:
                continue
            tags = parse_tags(value.replace(b"\r\n", b""))
            if tags is None or signature_fault(tags) or tags[b"a"].lower() == b"rsa-sha1":
                continue
            key_name = b"%b._domainkey.%b" % (tags[b"s"].lower(), tags[b"d"].lower())
            key = self._keys.get(key_name)
            if key is None:
                continue
            signature = self._signature(name, value, tags, key_name)
            if key is AWAITED_KEY:
                self.awaiting.append(signature)
            else:
                self.verified += 1
                yield from signature.faults(key)

    def _signature(
        self, name: bytes, value: bytes, tags: Mapping[bytes, bytes], key_name: bytes
    ) -> MessageSignature:
        of_header, _, of_body = tags.get(b"c", b"simple").lower().partition(b"/")
        return MessageSignature(
            key_name,
            tags[b"a"].lower(),
            self._has_body_hash(tags, of_body == b"relaxed"),
            decoded(tags[b"b"]),
            self._signed_data(name, value, signed_fields(tags), of_header == b"relaxed"),
        )

    def _has_body_hash(self, tags: Mapping[bytes, bytes], is_relaxed: bool) -> bool:
        """Return whether the body has the hash in bh=, as far as l= says."""
        if is_relaxed not in self._bodies:
            self._bodies[is_relaxed] = canonical_body(self._body, is_relaxed)
        body, length = self._bodies[is_relaxed], tags.get(b"l", b"")
        if length:
            if not length.isdigit() or int(length[:20]) > len(body):
                return False
            body = body[: int(length[:20])]
        return hashlib.sha256(body).digest() == decoded(tags[b"bh"])

    def _signed_data(self, name: bytes, value: bytes, names: list[bytes], is_relaxed: bool) -> bytes:
        """Return the fields that are signed, the last of a name first, and the signature without b=."""
        left: dict[bytes, list[tuple[bytes, bytes]]] = {}
        for field in self._fields:
            left.setdefault(field[0].strip().lower(), []).append(field)
        # A From field that is not signed could be added to a message, so there may be none.
        signed = [left[one].pop() for one in (*names, b"from") if left.get(one)]
        lines = [canonical_field(*field, is_relaxed) for field in signed]
        return b"\r\n".join([*lines, canonical_field(name, without_signature(value), is_relaxed)])


def without_signature(value: bytes) -> bytes:
    """Return the value of a DKIM-Signature field without that of its tag b=.

    >>> without_signature(b" v=1; b=abc; s=x")
    b' v=1; b=; s=x'
    """
    items = ((item, item.partition(b"=")[0]) for item in value.split(b";"))
    return b";".join(tag + b"=" if tag.strip() == b"b" else item for item, tag in items)


def decoded(value: bytes) -> bytes | None:
    """Return what base64 stands for; None if it is not well formed."""
    try:
        return a2b_base64(compact(value))
    except Error:
        return None
