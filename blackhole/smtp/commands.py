"""The commands: a verb is a row, and CONNECT and "." are rows too.

A row says what must have gone before (looked at only where the order is kept,
`--strict`), how the argument is read, what the command does, and how HELP
explains it. Reading comes apart from doing so that a rule may stand between.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from blackhole.smtp import replies
from blackhole.smtp.auth import (
    BY_NAME,
    FAIL,
    PASS,
    Credentials,
    Exchange,
    authenticate,
    challenge,
    decoded,
    failure_challenge,
)
from blackhole.smtp.extensions import keywords, parameters
from blackhole.smtp.replies import Reply
from blackhole.smtp.state import GREETED, MAIL, RCPT, Checks, ListenerConfig, ListenerReplies, SessionState


class Mailbox(NamedTuple):
    """What MAIL and RCPT say: an address (empty: the null sender), and parameters by upper-case name."""

    address: bytes
    parameters: Mapping[bytes, bytes] = MappingProxyType({})


PLAIN: Final = Mailbox(b"")
"""Stands for any path without parameters: only rules look at the address."""


# How an argument is read. A reader gives what it read, a reply that says what is wrong with it,
# or None for "501 5.5.4 Syntax:" and the row's syntax.

Reader = Callable[[SessionState, bytes], Any]


def any_argument(state: SessionState, argument: bytes) -> bytes:
    return argument


def required_argument(state: SessionState, argument: bytes) -> bytes | None:
    return argument.strip() or None


def name(state: SessionState, argument: bytes) -> bytes | None:
    argument = argument.strip()
    if argument and state.sampled:
        check_helo_name(state, argument)
    return argument or None


def no_argument(state: SessionState, argument: bytes) -> bytes | None:
    return None if argument.strip() else b""


QUOTED: Final = rb'"(?:[^"\\]|\\.)*"'

PATH: Final = 256
"""Octets of an address with its brackets (RFC 5321 4.5.3.1.3). Without --strict only the line has a limit."""

PATHS: Final = {
    # strict: as RFC 5321 4.1.2 writes it, but for the inside of the address.
    True: re.compile(rb":<((?:[^\s<>\"]|" + QUOTED + rb")*)>(?: +(\S.*))?"),
    # lenient: blanks anywhere, brackets or none, the colon too may be missing.
    False: re.compile(rb"\s*:?\s*(?:<((?:[^>\"]|" + QUOTED + rb")*)>|([^\s<>]*))(?:\s+(\S.*))?"),
}
"""What stands behind FROM or TO, by `strict`. Neighbouring parts never match the same octet: linear time."""


def path(word: bytes, bare: tuple[bytes, ...]) -> Reader:
    """A reader of `word`:<address> and parameters. `bare` addresses need no "@" (RFC 5321 4.5.1)."""
    start = word + b":<"
    length = len(word)

    def read(state: SessionState, argument: bytes) -> Mailbox | Reply | None:
        strict = state.host.config.strict
        # Nearly every MAIL and RCPT looks like this; the road below costs ten times as much.
        if (
            argument.startswith(start)
            and argument.find(b">") == len(argument) - 1 > length + 2
            and not strict
            and argument.isascii()
        ):
            return Mailbox(argument[length + 2 : -1])
        if argument[:length].upper() != word:
            return None
        match = PATHS[True].fullmatch(argument[length:].rstrip())
        if match is None and not strict:
            match = PATHS[False].fullmatch(argument[length:].rstrip())
            if match is not None:
                state.record_violation("syntax")
        if match is None:
            return None
        address, *unbracketed, rest = match.groups()
        if address is None:
            address = unbracketed[0]
        if address.lower() not in bare:
            if not address:
                return None
            local, _, domain = address.rpartition(b"@")
            if strict and not (local and domain):
                return None
            if strict and len(address) > PATH - len(b"<>"):
                state.record_violation("syntax")
                return replies.LONG_SENDER if word == b"FROM" else replies.LONG_RECIPIENT
        found = checked(rest or b"", state.host.parameters[state.secure][word])
        if found is replies.BAD_PARAMETER:
            state.record_violation("bad-parameter")
        elif found is replies.UNKNOWN_PARAMETER or (found and not state.esmtp):
            state.record_violation("unknown-parameter")
        if isinstance(found, Reply):
            return found
        # What MAIL asked for holds for its recipients, and not for the sender of the next message.
        if not (address.isascii() or b"SMTPUTF8" in found or (state.smtputf8 and word == b"TO")):
            state.record_violation("utf8-undeclared")
            return replies.NEEDS_SMTPUTF8
        return Mailbox(address, found)

    return read


def checked(text: bytes, known: Checks) -> dict[bytes, bytes] | Reply:
    """The ESMTP parameters of MAIL or RCPT by upper-case name (RFC 5321 4.1.2), or what is wrong with one."""
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
    """AUTH, and each line behind it until it is clear who the client says it is."""
    if state.exchange is not None:
        exchange, state.exchange = state.exchange, None
        return replies.CANCELLED if argument == b"*" else respond(state, exchange, argument)
    config = state.host.config
    if not config.auth:
        return argument
    name, *early = argument.split() or [b""]
    if not name or len(early) > 1:
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
    if early and not mechanism.early:
        return replies.NO_EARLY_RESPONSE
    exchange = mechanism.begin(b"<%d.%d@%s>" % (state.new_id(), state.new_id(), config.hostname.encode()))
    question = next(exchange)
    if early:
        # RFC 4954 4: an empty response is "=", so that it can be told from none.
        return respond(state, exchange, b"" if early[0] == b"=" else early[0])
    state.exchange = exchange
    return challenge(question)


def respond(state: SessionState, exchange: Exchange, text: bytes) -> Credentials | Reply:
    """Go on with an exchange: the next challenge, or what came of it."""
    response = decoded(text.rstrip())
    if response is None:
        return replies.BAD_AUTH_RESPONSE
    try:
        question = exchange.send(response)
    except StopIteration as end:
        found: Credentials | Reply = end.value
        return found
    state.exchange = exchange
    return challenge(question)


LAST_DIGIT: Final = ord("9")

ADDRESS: Final = re.compile(rb"[0-9]+(?:\.[0-9]+){3}|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*")
"""An address as it stands between the brackets of a literal, IPv4 or IPv6."""

# What a command does: change the state, and say so.

Action = Callable[[SessionState, Any], Reply]


def connect(state: SessionState, argument: bytes) -> Reply:
    return state.host.greeting


def helo(state: SessionState, argument: bytes) -> Reply:
    state.reset()
    state.stage |= GREETED
    state.esmtp = False
    return state.host.helo


def ehlo(state: SessionState, argument: bytes) -> Reply:
    state.reset()
    state.stage |= GREETED
    state.esmtp = True
    return state.host.ehlo_secure if state.secure else state.host.ehlo


def check_helo_name(state: SessionState, name: bytes) -> None:
    """Look at the name that a client gives itself."""
    if b"." in name and name[-1] > LAST_DIGIT:
        return
    if ADDRESS.fullmatch(name):
        state.record_violation("hello-literal")
    elif not (name.startswith(b"[") or b"." in name):
        state.record_violation("hello-name")


def mail(state: SessionState, sender: Mailbox) -> Reply:
    if state.stage > GREETED:
        state.reset()
    if sender.parameters:
        size = int(sender.parameters.get(b"SIZE", b"0"))
        limit = state.host.config.message_size_limit
        if limit and size > limit:
            return replies.TOO_LARGE
        state.size = size
        state.smtputf8 = b"SMTPUTF8" in sender.parameters
        state.eightbit = state.smtputf8 or sender.parameters.get(b"BODY", b"").upper() == b"8BITMIME"
    state.stage |= MAIL
    return replies.SENDER_OK


def rcpt(state: SessionState, recipient: Mailbox) -> Reply:
    state.stage |= RCPT
    state.recipients += 1
    return replies.RECIPIENT_OK


def data(state: SessionState, argument: bytes) -> Reply:
    return replies.START_INPUT


def end(state: SessionState, argument: bytes) -> Reply:
    limit = state.host.config.message_size_limit
    if 0 < limit < state.octets:
        # A quarter of it may be doubled dots, of lines that are just a dot; RFC 1870 5 leaves them out.
        if state.esmtp and 3 * state.octets > 4 * limit:
            state.record_violation("size-over-limit")
        return replies.TOO_LARGE if state.octets <= 2 * limit else replies.FAR_TOO_LARGE
    return replies.QUEUED


def rset(state: SessionState, argument: bytes) -> Reply:
    state.reset()
    return replies.RESET


def starttls(state: SessionState, argument: bytes) -> Reply:
    if state.secure:
        return replies.ALREADY_SECURE
    return replies.START_TLS if state.host.config.starttls else replies.NOT_OFFERED


def auth(state: SessionState, claim: Credentials | bytes) -> Reply:
    if not isinstance(claim, Credentials):
        return replies.NOT_OFFERED
    if authenticate(state.host.config.passwords, claim):
        state.authenticated = True
        return replies.AUTHENTICATED
    if not claim.failure_challenge:
        return replies.AUTHENTICATION_FAILED
    state.exchange = failure_challenge()
    next(state.exchange)
    return challenge(claim.failure_challenge)


def help_(state: SessionState, argument: bytes) -> Reply:
    return state.host.help.get(argument.strip().upper(), state.host.help[b""])


def quit_(state: SessionState, argument: bytes) -> Reply:
    state.left = True
    return replies.GOODBYE


def say(answer: Reply) -> Action:
    """An action that does nothing but answer."""
    return lambda state, argument: answer


def ask(otherwise: Reply, passed: Reply, failed: Reply) -> Action:
    """An action that answers as the client asks it to, with PASS or FAIL anywhere in what it says."""

    def answer(state: SessionState, argument: bytes) -> Reply:
        asked = argument.lower()
        if FAIL in asked:
            return failed
        return passed if PASS in asked else otherwise

    return answer


class Command(NamedTuple):
    """A row. `needs` and `bars` are stages that must, and must not, have been reached where order is kept."""

    verb: str
    read: Reader
    do: Action
    syntax: str = ""
    about: str = ""
    """For HELP. A verb without it is not offered."""
    needs: int = 0
    bars: int = 0
    last: bool = False
    """Must be the last of a pipelined group (RFC 2920 3.1)."""


COMMANDS: Final = (
    Command("CONNECT", any_argument, connect),
    Command("HELO", name, helo, "HELO hostname", "greet the server, the old way", last=True),
    Command("EHLO", name, ehlo, "EHLO hostname", "greet the server and ask for its extensions", last=True),
    Command("STARTTLS", no_argument, starttls, "STARTTLS", "go on under TLS", last=True),
    Command(
        "AUTH",
        credentials,
        auth,
        "AUTH mechanism [initial-response]",
        "log in, where EHLO offers it",
        needs=GREETED,
        bars=MAIL,
        last=True,
    ),
    Command(
        "MAIL",
        path(b"FROM", bare=(b"",)),
        mail,
        "MAIL FROM:<address> [SIZE=n] [BODY=7BIT|8BITMIME] [SMTPUTF8] [RET=FULL|HDRS] [ENVID=id]",
        "begin a message; <> is the null sender",
        needs=GREETED,
        bars=MAIL,
    ),
    Command(
        "RCPT",
        path(b"TO", bare=(b"postmaster",)),
        rcpt,
        "RCPT TO:<address> [NOTIFY=NEVER|SUCCESS,FAILURE,DELAY] [ORCPT=type;address]",
        "name one recipient",
        needs=MAIL,
    ),
    Command(
        "DATA",
        no_argument,
        data,
        "DATA",
        "send the message, ended by a dot on a line of its own",
        needs=RCPT,
        last=True,
    ),
    Command(".", any_argument, end),
    Command("RSET", no_argument, rset, "RSET", "forget the message that was begun"),
    Command("NOOP", any_argument, say(replies.OK), "NOOP [anything]", "do nothing", last=True),
    Command(
        "VRFY",
        required_argument,
        ask(replies.CODES[252], replies.VERIFIED, replies.NOT_VERIFIED),
        "VRFY address",
        "ask whether an address exists",
        last=True,
    ),
    Command(
        "EXPN",
        required_argument,
        ask(replies.CANNOT_EXPAND, replies.EXPANDED, replies.NOT_EXPANDED),
        "EXPN list",
        "ask who is on a list",
        last=True,
    ),
    Command("HELP", any_argument, help_, "HELP [verb]", "explain a command, or all of them", last=True),
    Command("QUIT", no_argument, quit_, "QUIT", "leave", last=True),
    # A verb of SMTP that Blackhole does not offer.
    Command("BDAT", any_argument, say(replies.BDAT_NOT_OFFERED), last=True),
)

NOT_OFFERED: Final = ("ATRN", "BURL", "ETRN", "SAML", "SEND", "SOML", "TURN", "XCLIENT", "XFORWARD")
"""Registered verbs that have no phase of their own: 502, as for all that SMTP knows and a server lacks."""

NOT_SMTP: Final = ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
"""Verbs of HTTP. A browser that was made to talk to a mail port must not get to run what stands in
its request's body as commands (cross-protocol scripting; ALPACA, USENIX Security 2021)."""

OTHER: Final = (
    Command("other", any_argument, say(replies.UNKNOWN)),
    *(Command(verb, any_argument, say(replies.NOT_OFFERED)) for verb in NOT_OFFERED),
    *(Command(verb, any_argument, say(replies.NOT_SMTP)) for verb in NOT_SMTP),
)
"""All that counts as phase "other"; its first row answers what nobody knows."""


def syntax(row: Command) -> Reply:
    """What a reader's None becomes."""
    return Reply(501, "5.5.4", f"Syntax: {row.syntax}")


def explanations() -> dict[bytes, Reply]:
    """HELP's answers by verb; the empty verb has the list of them all."""
    offered = [row for row in COMMANDS if row.about]
    pages = {row.verb.encode(): Reply(214, "2.0.0", row.syntax, row.about) for row in offered}
    pages[b""] = Reply(
        214,
        "2.0.0",
        "Blackhole takes any mail and forgets it. HELP verb explains one of:",
        *(" ".join(row.verb for row in offered[start : start + 7]) for start in range(0, len(offered), 7)),
    )
    return pages


def listener_replies(config: ListenerConfig) -> ListenerReplies:
    """All that a listener with this configuration says of itself."""
    name = config.hostname
    return ListenerReplies(
        config=config,
        greeting=Reply(220, "", f"{name} ESMTP Blackhole"),
        helo=Reply(250, "", name),
        ehlo=Reply(250, "", name, *keywords(config, False)),
        ehlo_secure=Reply(250, "", name, *keywords(config, True)),
        help=explanations(),
        parameters=(parameters(config, False), parameters(config, True)),
    )
