"""The tags of a DKIM-Signature field (RFC 6376 3.5), as far as they can be judged without a key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

MAX_SIGNATURE_OCTETS: Final = 16384
"""Octets of a DKIM-Signature that is judged. A longer one counts as right."""

TAG: Final = re.compile(rb"[ \t]*([A-Za-z][A-Za-z0-9_]*)[ \t]*=[ \t]*([!-:<-~ \t]*)").fullmatch

BASE64: Final = re.compile(rb"[A-Za-z0-9+/]+={0,2}").fullmatch

_SIGNING_LABEL: Final = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9])?"

SIGNING_DOMAIN: Final = re.compile(_SIGNING_LABEL + rb"(?:\." + _SIGNING_LABEL + rb")*").fullmatch

REQUIRED_TAGS: Final = (b"v", b"a", b"b", b"bh", b"d", b"h", b"s")

SIGNING_ALGORITHMS: Final = (b"rsa-sha256", b"ed25519-sha256", b"rsa-sha1")

CANONICALIZATIONS: Final = (
    *(b"simple", b"relaxed", b"simple/simple"),
    *(b"simple/relaxed", b"relaxed/simple", b"relaxed/relaxed"),
)


def parse_tags(value: bytes) -> Mapping[bytes, bytes] | None:
    """Return the tags of a signature by name; None if it is no list of tags.

    >>> parse_tags(b"v=1; d=a.test;")
    {b'v': b'1', b'd': b'a.test'}
    """
    tags: dict[bytes, bytes] = {}
    for item in value.strip().removesuffix(b";").split(b";"):
        found = TAG(item)
        if found is None or found[1] in tags:
            return None
        tags[found[1]] = found[2].strip()
    return tags


def compact(value: bytes) -> bytes:
    """Return a value without blanks, which may fold base64 and lists."""
    return value.translate(None, b" \t\r\n")


def signed_fields(tags: Mapping[bytes, bytes]) -> list[bytes]:
    """Return the names of the fields that a signature covers, in lower case."""
    return compact(tags.get(b"h", b"")).lower().split(b":")


def signature_fault(tags: Mapping[bytes, bytes] | None) -> str:
    """Return what is wrong with the tags of a signature; an empty text if nothing is."""
    if tags is None:
        return "it is no list of tags"
    missing = [tag for tag in REQUIRED_TAGS if not tags.get(tag)]
    if missing:
        return f"it has no tag {missing[0].decode()}="
    domain, identity = tags[b"d"].lower(), tags.get(b"i", b"@" + tags[b"d"]).lower().rpartition(b"@")[2]
    checks = (
        ("v= is not 1", tags[b"v"] == b"1"),
        ("the algorithm in a= is unknown", tags[b"a"].lower() in SIGNING_ALGORITHMS),
        ("b= is not base64", BASE64(compact(tags[b"b"]))),
        ("bh= is not base64", BASE64(compact(tags[b"bh"]))),
        ("c= is unknown", tags.get(b"c", b"simple").lower() in CANONICALIZATIONS),
        ("d= is no domain", SIGNING_DOMAIN(domain)),
        ("s= is no selector", SIGNING_DOMAIN(tags[b"s"])),
        ("h= does not have From", b"from" in signed_fields(tags)),
        ("i= is not within d=", identity == domain or identity.endswith(b"." + domain)),
        ("t= or x= is no number", (tags.get(b"t", b"0") + tags.get(b"x", b"0")).isdigit()),
    )
    faults = [fault for fault, holds in checks if not holds]
    if not faults and b"t" in tags and b"x" in tags and int(tags[b"x"][:12]) <= int(tags[b"t"][:12]):
        return "x= is not later than t="
    return faults[0] if faults else ""


def is_aligned(domain: bytes, signing_domain: bytes) -> bool:
    """Return whether two domains have the same last two labels.

    That is DMARC's relaxed alignment (RFC 7489 3.1.1), except that registries below which names are sold at
    the third label are not known. So domains that are not aligned may count as aligned, but not the reverse.

    >>> is_aligned(b"news.a.test", b"mail.A.test"), is_aligned(b"a.test", b"b.test")
    (True, False)
    """
    return domain.lower().split(b".")[-2:] == signing_domain.lower().split(b".")[-2:]
