"""Public keys for DKIM, made of the records that domains publish (RFC 6376 3.6.1), by `cryptography`."""

from __future__ import annotations

import os
from binascii import Error, a2b_base64
from collections.abc import Mapping
from typing import Any, Final

from blackhole.messages.dkim_verification import ED25519, RSA
from blackhole.messages.signature_tags import compact, parse_tags
from blackhole.settings import OperatorError

MAX_RSA_BITS: Final = 8192
"""Bits of an RSA key, at most: longer ones take milliseconds."""

MAX_RSA_EXPONENT: Final = 2**32
"""A signature takes the longer the greater the exponent is: 65537 is usual."""


class UnusableKey:
    """What is published in place of a key, or that nothing is."""

    kind = b""
    bits = 0

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Return that no signature was made with it."""
        return False


class PublishedKey:
    """The key in a record. Raises ValueError for a record that has none."""

    def __init__(self, record: bytes) -> None:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_der_public_key

        tags = parse_tags(record)
        if tags is None or b"p" not in tags or tags.get(b"v", b"DKIM1") != b"DKIM1":
            raise ValueError("it is no DKIM record, such as v=DKIM1; k=rsa; p=MIG...")
        self.kind = tags.get(b"k", RSA).lower()
        self.bits = 256
        self.fault = ""
        self._key: Any = None
        try:
            octets = a2b_base64(compact(tags[b"p"]))
            if not octets:
                self.kind, self.fault = b"", "the key was revoked"
            elif self.kind == ED25519:
                self._key = Ed25519PublicKey.from_public_bytes(octets)
            else:
                self._key = load_der_public_key(octets)
                self.bits = rsa_bits(self._key)
        except (Error, ValueError, UnsupportedAlgorithm):
            raise ValueError("p= is no public key") from None
        if self.kind == RSA and not 0 < self.bits <= MAX_RSA_BITS:
            raise ValueError(f"p= is no RSA key of up to {MAX_RSA_BITS} bits, with an exponent of up to 2^32")
        if self.kind not in (RSA, ED25519, b""):
            raise ValueError("k= is neither rsa nor ed25519")

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Return whether a signature with SHA-256 over these data was made with the key."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256, Hash

        try:
            if self.kind == RSA:
                self._key.verify(signature, data, PKCS1v15(), SHA256())
            else:
                digest = Hash(SHA256())
                digest.update(data)
                self._key.verify(signature, digest.finalize())
        except (InvalidSignature, ValueError):  # the latter for keys that are too short for SHA-256
            return False
        return True


def rsa_bits(key: Any) -> int:
    """Return the bits of an RSA key; 0 for a key of another kind, or with too great an exponent."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if not isinstance(key, RSAPublicKey) or key.public_numbers().e > MAX_RSA_EXPONENT:
        return 0
    return key.key_size


def published_keys(path: str, records: Mapping[bytes, bytes]) -> dict[bytes, PublishedKey]:
    """Return the keys in records by name, which were read from a file at `path`.

    Raises OperatorError for a record without a key, or if the package `cryptography` is not installed.
    """
    require_cryptography("dkim_keys")
    keys = {}
    for name, record in records.items():
        try:
            keys[name] = PublishedKey(record)
        except ValueError as error:
            raise OperatorError(f"dkim_keys {path}: {name.decode('ascii', 'replace')}: {error}") from None
    return keys


def require_cryptography(option: str) -> None:
    """Import what keys need. Raises OperatorError, which names an option, if it is not installed."""
    try:
        import cryptography.exceptions
        import cryptography.hazmat.primitives.asymmetric.ed25519
        import cryptography.hazmat.primitives.asymmetric.padding
        import cryptography.hazmat.primitives.asymmetric.rsa
        import cryptography.hazmat.primitives.hashes
        import cryptography.hazmat.primitives.serialization  # noqa: F401
    except ImportError:
        raise OperatorError(
            f"{option} needs a package: pip install 'blackhole-smtp[dkim]'", os.EX_CONFIG
        ) from None
