"""SCRAM: what a server computes from a password, so that neither side has to send it (RFC 5802, RFC 7677)."""

from __future__ import annotations

import binascii
import hashlib
import hmac
import stringprep
import unicodedata
from functools import lru_cache
from typing import Final, NamedTuple

ITERATIONS: Final = 4096
"""Rounds in which a password is salted: the least that RFC 7677 4 allows, a millisecond of processor time."""

PROHIBITED: Final = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)
"""Characters that SASLprep refuses (RFC 4013 2.3)."""


class ScramKeys(NamedTuple):
    """What is kept of a password for one salt (RFC 5802 3)."""

    stored_key: bytes
    server_key: bytes


def saslprep(text: bytes) -> bytes:
    """Return a password as both sides write it (RFC 4013); text that it refuses stays as it is.

    >>> saslprep("I\u00adX".encode()), saslprep("\u2168".encode())
    (b'IX', b'IX')
    """
    try:
        given = text.decode()
    except UnicodeDecodeError:
        return text
    mapped = "".join(
        " " if stringprep.in_table_c12(character) else character
        for character in given
        if not stringprep.in_table_b1(character)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    right_to_left = any(map(stringprep.in_table_d1, prepared))
    if (
        any(is_prohibited(character) for is_prohibited in PROHIBITED for character in prepared)
        or (right_to_left and any(map(stringprep.in_table_d2, prepared)))
        or (right_to_left and not all(map(stringprep.in_table_d1, prepared[:1] + prepared[-1:])))
    ):
        return text
    return prepared.encode()


@lru_cache(maxsize=1024)
def scram_keys(digest: str, password: bytes, salt: bytes) -> ScramKeys:
    """Return the keys of a password. They are kept, because making them takes a millisecond."""
    salted = hashlib.pbkdf2_hmac(digest, saslprep(password), salt, ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", digest)
    return ScramKeys(hashlib.new(digest, client_key).digest(), hmac.digest(salted, b"Server Key", digest))


def is_proof(digest: str, keys: ScramKeys, messages: bytes, proof: bytes) -> bool:
    """Return whether a proof was made with the password that the keys belong to (RFC 5802 3)."""
    signature = hmac.digest(keys.stored_key, messages, digest)
    if len(proof) != len(signature):
        return False
    client_key = bytes(one ^ other for one, other in zip(proof, signature, strict=True))
    return hmac.compare_digest(hashlib.new(digest, client_key).digest(), keys.stored_key)


def server_signature(digest: str, keys: ScramKeys, messages: bytes) -> bytes:
    """Return the signature that proves that the server knows the password too."""
    return to_base64(hmac.digest(keys.server_key, messages, digest))


def attributes(text: bytes) -> dict[bytes, bytes]:
    """Return the attributes of a message by their letters (RFC 5802 5.1).

    >>> attributes(b"n=ann,r=f00=")
    {b'n': b'ann', b'r': b'f00='}
    """
    pairs = (part.partition(b"=") for part in text.split(b","))
    return {name: value for name, equals, value in pairs if equals}


def to_base64(octets: bytes) -> bytes:
    """Return octets in base64, without a line end."""
    return binascii.b2a_base64(octets, newline=False)
