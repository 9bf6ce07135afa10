"""Readers of arguments: what stands behind a verb, checked and taken apart.

A reader returns what the command needs to know, a reply that refuses the argument, or None, which becomes
"501 5.5.4 Syntax:" with the syntax of the command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from blackhole.smtp import replies
from blackhole.smtp.auth import BY_NAME, Credentials, Exchange, challenge, decoded
from blackhole.smtp.replies import Reply
from blackhole.smtp.state import GREETED, Checks, SessionState

ArgumentReader = Callable[[SessionState, bytes], Any]


NONE: Final[Mapping[bytes, bytes]] = MappingProxyType({})


class Mailbox:
    """The argument of MAIL or RCPT: an address and ESMTP parameters (RFC 5321 4.1.1.2, 4.1.1.3)."""

    __slots__ = ("address", "parameters")

    def __init__(self, address: bytes, parameters: Mapping[bytes, bytes] = NONE) -> None:
        self.address: Final = address
        """Without its brackets; empty for the null reverse-path."""
        self.parameters: Final = parameters
        """Values by upper-case name; a parameter without a value has an empty one."""


NO_PARAMETERS: Final = Mailbox(b"")
"""Stands for any mailbox without parameters: commands do not look at addresses, only policies do."""

QUOTED: Final = rb'"(?:[^"\\]|\\.)*"'

MAX_PATH: Final = 256
"""Octets of an address with its brackets (RFC 5321 4.5.3.1.3). Only --strict enforces it."""

PATHS: Final = {
    # strict: the syntax of RFC 5321 4.1.2, except that the inside of the address is not checked.
    True: re.compile(rb":<((?:[^\s<>\"]|" + QUOTED + rb")*)>(?: +(\S.*))?"),
    # lenient: blanks anywhere, with or without brackets; even the colon may be missing.
    False: re.compile(rb"\s*:?\s*(?:<((?:[^>\"]|" + QUOTED + rb")*)>|([^\s<>]*))(?:\s+(\S.*))?"),
}
"""What may follow FROM or TO, by `strict`. Adjacent parts never match the same octet, so matching takes
linear time."""

LAST_DIGIT: Final = ord("9")

ADDRESS: Final = re.compile(rb"[0-9]+(?:\.[0-9]+){3}|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*")
"""An IPv4 or IPv6 address without the brackets of an address literal (RFC 5321 4.1.3)."""


def any_argument(state: SessionState, argument: bytes) -> bytes:
    """Return the argument as it is."""
    return argument


def required_argument(state: SessionState, argument: bytes) -> bytes | None:
    """Return an argument that must not be blank."""
    return argument.strip() or None


def no_argument(state: SessionState, argument: bytes) -> bytes | None:
    """Return an empty argument; anything but blanks is a syntax error."""
    return None if argument.strip() else b""


def helo_name(state: SessionState, argument: bytes) -> bytes | None:
    """Return the name of HELO or EHLO, and record what is wrong with it if the session is sampled."""
    name = argument.strip()
    if name and state.sampled:
        check_helo_name(state, name)
    return name or None


def check_helo_name(state: SessionState, name: bytes) -> None:
    """Record a name that is neither a domain nor an address literal (RFC 5321 4.1.1.1)."""
    if b"." in name and name[-1] > LAST_DIGIT:
        return
    if ADDRESS.fullmatch(name):
        state.record_violation("hello-literal")
    elif not (name.startswith(b"[") or b"." in name):
        state.record_violation("hello-name")


def mailbox(word: bytes, local_names: tuple[bytes, ...]) -> ArgumentReader:
    """Return a reader of `word`:<address> and parameters.

    Addresses among `local_names` need no "@": the null reverse-path, and postmaster (RFC 5321 4.5.1).
    """
    start = word + b":<"
    length = len(word)

    def read(state: SessionState, argument: bytes) -> Mailbox | Reply | None:
        strict = state.listener.config.strict
        # Nearly every MAIL and RCPT looks like this, and the full syntax takes ten times as long.
        if (
            argument.startswith(start)
            and argument.find(b">") == len(argument) - 1 > length + 2
            and not strict
            and argument.isascii()
        ):
            return Mailbox(argument[length + 2 : -1])
        if argument[:length].upper() != word:
            return None
        path = argument[length:].rstrip()
        match = PATHS[True].fullmatch(path)
        if match is None and not strict:
            match = PATHS[False].fullmatch(path)
            if match is not None:
                state.record_violation("syntax")
        if match is None:
            return None
        address, *unbracketed, rest = match.groups()
        if address is None:
            address = unbracketed[0]
        if address.lower() not in local_names:
            local, _, domain = address.rpartition(b"@")
            if not address or (strict and not (local and domain)):
                return None
            if strict and len(address) > MAX_PATH - len(b"<>"):
                state.record_violation("syntax")
                return replies.LONG_SENDER if word == b"FROM" else replies.LONG_RECIPIENT
        return _with_parameters(state, word, address, rest or b"")

    return read


def _with_parameters(state: SessionState, word: bytes, address: bytes, text: bytes) -> Mailbox | Reply:
    """Return a mailbox with the parameters of a text, or the reply that refuses one of them."""
    parameters = parse_parameters(text, state.listener.parameters[state.secure][word])
    if parameters is replies.BAD_PARAMETER:
        state.record_violation("bad-parameter")
    elif parameters is replies.UNKNOWN_PARAMETER or (parameters and not state.esmtp):
        state.record_violation("unknown-parameter")
    if isinstance(parameters, Reply):
        return parameters
    # SMTPUTF8 of MAIL holds for the recipients of the message (RFC 6531 3.4), not for the next sender.
    utf8 = b"SMTPUTF8" in parameters or (state.smtputf8 and word == b"TO")
    if not (utf8 or address.isascii()):
        state.record_violation("utf8-undeclared")
        return replies.NEEDS_SMTPUTF8
    return Mailbox(address, parameters)


def parse_parameters(text: bytes, known: Checks) -> dict[bytes, bytes] | Reply:
    """Return ESMTP parameters by upper-case name, or the reply to a wrong one (RFC 5321 4.1.2)."""
    found: dict[bytes, bytes] = {}
    for word in text.split():
        name, _, value = word.partition(b"=")
        name = name.upper()
        if name not in known:
            return replies.UNKNOWN_PARAMETER
        if name in found or not known[name](value):
            return replies.BAD_PARAMETER
        found[name] = value
    return found


def credentials(state: SessionState, argument: bytes) -> Credentials | Reply | bytes | None:
    """Read AUTH, and each response behind it until the client's credentials are known (RFC 4954 4)."""
    if state.auth_exchange is not None:
        exchange, state.auth_exchange = state.auth_exchange, None
        return replies.CANCELLED if argument == b"*" else _respond(state, exchange, argument)
    config = state.listener.config
    if not config.auth:
        return argument
    name, *initial_response = argument.split() or [b""]
    if not name or len(initial_response) > 1:
        return None
    if not (state.secure or config.auth_plaintext):
        return replies.NEEDS_TLS
    if state.authenticated:
        return replies.ALREADY_AUTHENTICATED
    if state.stage > GREETED:
        return replies.BAD_SEQUENCE
    mechanism = BY_NAME.get(name.upper())
    if mechanism is None:
        return replies.NO_MECHANISM
    if initial_response and not mechanism.early:
        return replies.NO_EARLY_RESPONSE
    nonce = b"<%d.%d@%s>" % (state.new_id(), state.new_id(), config.hostname.encode())
    exchange = mechanism.begin(nonce)
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
