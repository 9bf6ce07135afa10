"""Message checks: what is wrong with the content of a message, by the RFCs and by the rules of providers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from blackhole.messages.dkim_verification import (
    AWAITED_KEY,
    DKIMKeys,
    MessageSignature,
    SignatureVerification,
)
from blackhole.messages.field_syntax import date_fault, is_message_id, mailbox_domains
from blackhole.messages.header_fields import MessageTooComplexError, ParsedHeader, parse_header
from blackhole.messages.list_unsubscribe import is_uri_list, one_click_fault
from blackhole.messages.mime_structure import MessageFault, MimeStructure
from blackhole.messages.signature_tags import (
    MAX_SIGNATURE_OCTETS,
    is_aligned,
    parse_tags,
    signature_fault,
    signed_fields,
)

MAX_HTML: Final = 102 * 1024
"""Octets of HTML that Gmail displays."""

SINGLE_FIELDS: Final = (
    *(b"date", b"sender", b"reply-to", b"to", b"cc", b"bcc", b"message-id", b"in-reply-to"),
    *(b"references", b"subject"),
)
"""Fields that a message has once at most (RFC 5322 3.6); From has violations of its own."""

NO_KEYS: Final[DKIMKeys] = {}

MAX_JUDGED_SIGNATURES: Final = 10
"""DKIM-Signature fields of a message that are judged."""

UNSUBSCRIBE: Final = b"list-unsubscribe"
UNSUBSCRIBE_POST: Final = b"list-unsubscribe-post"


class CheckedMessage(NamedTuple):
    """What was looked at in a message, and what is wrong with it. Each violation stands once."""

    faults: tuple[MessageFault, ...]
    has_header: bool
    """The header section was looked at."""
    is_whole: bool
    """The body was looked at too."""
    is_verified: bool = False
    """A DKIM signature was verified."""
    awaiting: tuple[MessageSignature, ...] = ()
    """If none was: those that can be verified once their keys have come."""


UNCHECKED: Final = CheckedMessage((), False, False)


def check_message(
    text: bytes, is_whole: bool, smtputf8: bool = False, keys: DKIMKeys = NO_KEYS
) -> CheckedMessage:
    """Return what is wrong with a message that begins with this text, without doubled dots.

    `is_whole`: it also ends with it. What cannot be known of a part of a message is not judged. `keys` are
    those of signatures, which are not verified without them.

    >>> check_message(b"From: ann\\r\\n\\r\\nHello\\r\\n", True).faults[0]
    MessageFault(violation='bad-from', detail='it is no list of mailboxes')
    """
    try:
        header = parse_header(text, 0, len(text))
    except MessageTooComplexError:
        return UNCHECKED
    if not (header.is_complete or is_whole):
        return UNCHECKED
    faults = [*header_faults(header, smtputf8)]
    structure, is_judged = MimeStructure(text), is_whole
    in_body: list[MessageFault] = []
    try:
        in_body += structure.faults(header)
    except MessageTooComplexError:
        is_judged = False
    if structure.html_octets > MAX_HTML:
        faults.append(MessageFault("html-clipped", f"{structure.html_octets} octets of HTML"))
    if is_judged:
        faults += in_body
    is_verified = False
    awaiting: tuple[MessageSignature, ...] = ()
    if keys and is_whole and header.named(b"dkim-signature"):
        verification = SignatureVerification(text, header, keys)
        faults += verification.faults()
        is_verified = verification.verified > 0
        awaiting = () if is_verified else tuple(verification.awaiting)
    return CheckedMessage(each_once(faults), True, is_judged, is_verified, awaiting)


def verify_awaiting(signatures: tuple[MessageSignature, ...], keys: DKIMKeys) -> CheckedMessage | None:
    """Return what is wrong with signatures of a message whose keys were awaited; None while one still is."""
    known = [(signature, keys.get(signature.key_name)) for signature in signatures]
    if any(key is AWAITED_KEY for _, key in known):
        return None
    faults = [fault for signature, key in known if key is not None for fault in signature.faults(key)]
    return CheckedMessage(each_once(faults), False, False, any(key is not None for _, key in known))


def each_once(faults: Sequence[MessageFault]) -> tuple[MessageFault, ...]:
    """Return the first fault of each violation."""
    first = {fault.violation: fault for fault in reversed(faults)}
    return tuple(reversed(first.values()))


def header_faults(header: ParsedHeader, smtputf8: bool) -> Iterator[MessageFault]:
    """Yield what is wrong with the fields of a message. `smtputf8`: they may be UTF-8 (RFC 6532)."""
    if header.fault:
        yield MessageFault("bad-field", header.fault)
    if not all(field.value.isascii() or (smtputf8 and is_utf8(field.value)) for field in header.fields):
        yield MessageFault(
            "8bit-header", "a field that is not UTF-8" if smtputf8 else "sent without SMTPUTF8"
        )
    count = Counter(field.name for field in header.fields)
    for name in SINGLE_FIELDS:
        if count[name] > 1:
            yield MessageFault("repeated-field", f"{name.decode().title()}: {count[name]} times")
    yield from _from_faults(header)
    dates, ids = header.named(b"date"), header.named(b"message-id")
    if not dates:
        yield MessageFault("no-date", "")
    for value in dates[:1]:
        fault = date_fault(value)
        if fault:
            yield MessageFault("bad-date", fault)
    if not ids:
        yield MessageFault("no-message-id", "")
    if not all(map(is_message_id, ids[:1])):
        yield MessageFault("bad-message-id", "it is not one <left@right>")
    yield from _signature_faults(header)
    yield from _unsubscribe_faults(header)


def is_utf8(value: bytes) -> bool:
    """Return whether a value is UTF-8."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _from_faults(header: ParsedHeader) -> Iterator[MessageFault]:
    """Yield what is wrong with the authors of a message (RFC 5322 3.6.2)."""
    values = header.named(b"from")
    if not values:
        yield MessageFault("no-from", "")
        return
    if len(values) > 1:
        yield MessageFault("several-from", f"{len(values)} fields")
    domains = mailbox_domains(values[0])
    if domains is None:
        yield MessageFault("bad-from", "it is no list of mailboxes")
    elif len(domains) > 1:
        yield MessageFault("several-authors", f"{len(domains)} mailboxes")
        if not header.named(b"sender"):
            yield MessageFault("no-sender", f"{len(domains)} mailboxes in From")


def _signature_faults(header: ParsedHeader) -> Iterator[MessageFault]:
    """Yield what is wrong with the signatures of a message, without their keys."""
    values = [value for value in header.named(b"dkim-signature") if len(value) <= MAX_SIGNATURE_OCTETS]
    if not values:
        yield MessageFault("no-dkim-signature", "")
        return
    signatures = [parse_tags(value) for value in values[:MAX_JUDGED_SIGNATURES]]
    for tags in signatures:
        fault = signature_fault(tags)
        if fault:
            yield MessageFault("bad-dkim-signature", fault)
        if tags is not None and tags.get(b"a", b"").lower() == b"rsa-sha1":
            yield MessageFault("dkim-sha1", "a=rsa-sha1")
    signing = [tags[b"d"] for tags in signatures if tags is not None and b"d" in tags]
    authors = (mailbox_domains(value) for value in header.named(b"from")[:1])
    domains = [domain for found in authors for domain in found or ()]
    if domains and not any(is_aligned(domains[0], one) for one in signing):
        yield MessageFault("unaligned-dkim", "no d= belongs to the domain in From")
    if header.named(UNSUBSCRIBE_POST):
        covered = (signed_fields(tags) for tags in signatures if tags is not None)
        if not any(UNSUBSCRIBE in names and UNSUBSCRIBE_POST in names for names in covered):
            yield MessageFault("one-click-unsigned", "h= has not both fields of one-click unsubscribe")


def _unsubscribe_faults(header: ParsedHeader) -> Iterator[MessageFault]:
    """Yield what is wrong with the way to unsubscribe."""
    values, posts = header.named(UNSUBSCRIBE), header.named(UNSUBSCRIBE_POST)
    if not values:
        yield MessageFault("no-list-unsubscribe", "")
    elif not is_uri_list(values[0]):
        yield MessageFault("bad-list-unsubscribe", "it is no list of URIs in angle brackets")
    if posts:
        fault = one_click_fault(b"".join(values[:1]), posts[0])
        if fault:
            yield MessageFault("bad-one-click", fault)
    elif values:
        yield MessageFault("no-one-click", "")
