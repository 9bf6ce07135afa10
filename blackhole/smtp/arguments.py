"""Readers of arguments: what stands behind a verb, checked and taken apart.

A reader returns what the command needs to know, a reply that refuses the argument, or None, which becomes
"501 5.5.4 Syntax:" with the syntax of the command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from blackhole.smtp import replies
from blackhole.smtp.auth import AuthSetup, Credentials, Exchange, challenge, decoded
from blackhole.smtp.chunking import Chunk, read_chunk
from blackhole.smtp.extensions import ONLY_ONE, added_parameters
from blackhole.smtp.named_client import AttributeCheck, read_attributes
from blackhole.smtp.offer import BINARYMIME, NO_OFFER
from blackhole.smtp.paths import USUAL_ADDRESS, Path, is_address_literal, is_domain, read_path
from blackhole.smtp.replies import Reply
from blackhole.smtp.state import CHUNKED, GREETED, NO_PARAMETERS_SENT, Checks, SessionState

ArgumentReader = Callable[[SessionState, bytes], Any]


class Mailbox:
    """The argument of MAIL or RCPT: an address and ESMTP parameters (RFC 5321 4.1.1.2, 4.1.1.3)."""

    __slots__ = ("address", "parameters")

    def __init__(self, address: bytes, parameters: Mapping[bytes, bytes] = NO_PARAMETERS_SENT) -> None:
        self.address: Final = address
        """Without its brackets; empty for the null reverse-path."""
        self.parameters: Final = parameters
        """Values by upper-case name; a parameter without a value has an empty one."""


ANY_MAILBOX: Final = Mailbox(b"")
"""Stands for any mailbox without parameters: commands do not look at addresses, only policies do."""

MAX_PATH: Final = 256
"""Octets of an address with its brackets (RFC 5321 4.5.3.1.3). Only --strict enforces it."""

OPENING_BRACKET: Final = ord("[")

IP_ADDRESS: Final = re.compile(rb"[0-9]+(?:\.[0-9]+){3}|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*")
"""An IPv4 or IPv6 address without the brackets of an address literal (RFC 5321 4.1.3)."""


def any_argument(state: SessionState, argument: bytes) -> bytes:
    """Return the argument as it is."""
    return argument


def without_leading_blanks(state: SessionState, argument: bytes) -> bytes | None:
    """Return an argument without the second and further blanks behind the verb, and record them as wrong.

    Return None where the syntax is enforced: a single blank separates a verb from its argument.
    """
    if not argument[:1].isspace():
        return argument
    stripped = argument.lstrip()
    if stripped and state.listener.config.strict:
        return None
    if stripped:
        state.record_violation("syntax")
    return stripped


def string(state: SessionState, argument: bytes) -> bytes | None:
    """Return the argument of VRFY or EXPN, which must not be blank (RFC 5321 4.1.1.6, RFC 6531 3.7.4.2)."""
    found = without_leading_blanks(state, argument)
    if not found:
        return None
    if not (found.isascii() or found.upper().split()[-1] == b"SMTPUTF8"):
        state.record_violation("utf8-undeclared")
    return found.rstrip()


def no_argument(state: SessionState, argument: bytes) -> bytes | None:
    """Return an empty argument; anything but blanks is a syntax error."""
    return None if argument.strip() else b""


def chunk(state: SessionState, argument: bytes) -> Chunk | Reply | None:
    """Return what BDAT announces (RFC 3030 2). After a refused chunk all others are discarded."""
    if state.refused & CHUNKED:
        if not state.outstanding:
            state.record_violation("chunk-after-refusal")
        return replies.CHUNK_DISCARDED
    text = without_leading_blanks(state, argument)
    found = None if text is None else read_chunk(text)
    return found if found is not None and found.is_correct else None


def helo_name(state: SessionState, argument: bytes) -> bytes | None:
    """Return the name of HELO or EHLO, and record what is wrong with it if the session is sampled."""
    name = without_leading_blanks(state, argument)
    if not name:
        return None
    name = name.rstrip()
    if len(name.split()) > 1:
        if state.listener.config.strict:
            return None
        state.record_violation("syntax")
    if not name.isascii():
        state.record_violation("utf8-undeclared")  # RFC 6531 3.7.1: the server has not offered it yet.
    elif state.sampled:
        check_helo_name(state, name.split()[0])
    return name


def check_helo_name(state: SessionState, name: bytes) -> None:
    """Record a name that is neither a domain nor an address literal (RFC 5321 4.1.1.1): once in a session."""
    if name[0] == OPENING_BRACKET:
        violation = "" if is_address_literal(name) else "hello-literal"
    elif IP_ADDRESS.fullmatch(name):
        violation = "hello-literal"
    elif b"." not in name:
        violation = "hello-name"
    else:
        violation = "" if is_domain(name) else "syntax"
    if violation and violation not in state.violation_contexts:
        state.record_sampled_violation(violation)


def mailbox(word: bytes, local_names: tuple[bytes, ...]) -> ArgumentReader:
    """Return a reader of `word`:<address> and parameters.

    Addresses among `local_names` need no "@": the null reverse-path, and postmaster (RFC 5321 4.5.1).
    """
    length = len(word)
    # Nearly every MAIL and RCPT looks like this, and to read it with the full syntax takes twice as long.
    usual = re.compile(word + rb":<(" + USUAL_ADDRESS + rb")>").fullmatch
    longest = length + len(b":") + MAX_PATH

    def read(state: SessionState, argument: bytes) -> Mailbox | Reply | None:
        match = usual(argument) if len(argument) <= longest else None
        if match is not None:
            return Mailbox(match[1])
        strict = state.listener.config.strict
        text = argument.strip()
        if text[:length].upper() != word:
            return None
        path = read_path(text[length:], local_names)
        if path is None:
            return None
        if len(path.address) > MAX_PATH - len(b"<>"):
            state.record_violation("long-path")
        if strict and len(path.address) > MAX_PATH - len(b"<>"):
            return replies.LONG_SENDER if word == b"FROM" else replies.LONG_RECIPIENT
        if not path.is_correct or argument[:1].isspace():
            if strict or not (path.address or b"" in local_names):
                return None
            state.record_violation("syntax")
        return _with_parameters(state, word, path)

    return read


def _with_parameters(state: SessionState, word: bytes, path: Path) -> Mailbox | Reply:
    """Return a mailbox with its parameters, or the reply that refuses one of them."""
    known, text = state.listener.parameters[state.secure][word], path.parameters
    if state.offered not in (NO_OFFER, state.own_offer):
        known = {**known, **added_parameters(state.offered)[word]}
    parameters = parse_parameters(text, known)
    if not all(state.offered.has_parameter(one, word == b"TO") for one in text.split()):
        state.record_violation("unknown-parameter")
    elif parameters is replies.BAD_PARAMETER and BINARYMIME not in text.upper():
        state.record_violation("bad-parameter")
    if parameters is replies.BAD_PARAMETER and not state.listener.config.strict:
        parameters = parse_parameters(text, known, lenient=True)
    if isinstance(parameters, Reply):
        return parameters
    # SMTPUTF8 of MAIL holds for the recipients of the message (RFC 6531 3.4), not for the next sender. An
    # original recipient needs only a server that offers it (RFC 6533 3).
    utf8 = b"SMTPUTF8" in parameters or (state.smtputf8 and word == b"TO")
    if not (utf8 or (path.address.isascii() and parameters.get(b"AUTH", b"").isascii())):
        state.record_violation("utf8-undeclared")
        return replies.NEEDS_SMTPUTF8
    original = parameters.get(b"ORCPT", b"")
    if (
        original[:6].upper() == b"UTF-8;"
        and not original.isascii()
        and not state.offered.has_parameter(b"SMTPUTF8", False)
    ):
        state.record_violation("utf8-undeclared")  # RFC 6533 3: \\x{...} is for servers without SMTPUTF8
        if state.listener.config.strict:
            return replies.NEEDS_SMTPUTF8
    state.parameters = parameters
    return Mailbox(path.address, parameters)


def parse_parameters(text: bytes, known: Checks, lenient: bool = False) -> dict[bytes, bytes] | Reply:
    """Return ESMTP parameters by upper-case name, or the reply to a wrong one (RFC 5321 4.1.2).

    `lenient`: take values that are wrong in ways that other servers overlook.
    """
    found: dict[bytes, bytes] = {}
    for word in text.split():
        name, equals, value = word.partition(b"=")
        name = name.upper()
        if name not in known:
            return replies.UNKNOWN_PARAMETER
        if name in found or (equals and not value) or not known[name](value, lenient):
            return replies.BAD_PARAMETER
        found[name] = value
    return replies.BAD_PARAMETER if any(len(found.keys() & names) > 1 for names in ONLY_ONE) else found


def attributes_of_client(known: Mapping[bytes, AttributeCheck]) -> ArgumentReader:
    """Return a reader of the attributes behind XCLIENT or XFORWARD, which only some servers may send.

    Neither may come in a transaction, whether or not the order is enforced otherwise.
    """

    def read(state: SessionState, argument: bytes) -> Mapping[bytes, bytes] | Reply | None:
        config = state.listener.config
        if config.xclient_from is None:
            return replies.NOT_OFFERED
        if not state.names_clients:
            return replies.NOT_AUTHORIZED
        if state.stage > GREETED:
            state.record_violation("wrong-order")
            return replies.BAD_SEQUENCE
        return read_attributes(argument, known, lenient=not config.strict)

    return read


def credentials(state: SessionState, argument: bytes) -> Credentials | Reply | bytes | None:
    """Read AUTH, and each response behind it until the client's credentials are known (RFC 4954 4)."""
    if state.auth_exchange is not None:
        exchange, state.auth_exchange = state.auth_exchange, None
        return replies.CANCELLED if argument == b"*" else _respond(state, exchange, argument)
    config = state.listener.config
    if not config.auth:
        return argument
    if without_leading_blanks(state, argument) is None:
        return None
    name, *initial_response = argument.split() or [b""]
    if not name or len(initial_response) > 1:
        return None
    if not (state.secure or config.auth_plaintext):
        return replies.NEEDS_TLS
    if state.authenticated:
        return replies.ALREADY_AUTHENTICATED
    if state.stage > GREETED:
        return replies.BAD_SEQUENCE
    mechanism = state.listener.mechanisms.get(name.upper())
    if mechanism is None:
        return replies.NO_MECHANISM
    if initial_response and not mechanism.early:
        return replies.NO_EARLY_RESPONSE
    nonce = b"<%d.%d@%s>" % (state.new_id(), state.new_id(), config.hostname.encode())
    exchange = mechanism.begin(AuthSetup(nonce, config.passwords, state.client_identity))
    question = next(exchange)
    if initial_response:
        # An empty response is sent as "=", to tell it from none.
        return _respond(state, exchange, b"" if initial_response[0] == b"=" else initial_response[0])
    state.auth_exchange = exchange
    return challenge(question)


def _respond(state: SessionState, exchange: Exchange, text: bytes) -> Credentials | Reply:
    """Give a response to the exchange; return the next challenge or what the exchange came to."""
    response = decoded(text.rstrip())
    if response is None:
        return replies.BAD_AUTH_RESPONSE
    try:
        question = exchange.send(response)
    except StopIteration as end:
        found: Credentials | Reply = end.value
        return found
    state.auth_exchange = exchange
    return challenge(question)
