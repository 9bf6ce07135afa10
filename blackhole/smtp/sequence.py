"""The sequence of commands: what a client sends too early, too late or in the wrong order.

Each verdict follows from what the client was offered, what it was told, whether it had to know that, and the
command. Sources: RFC 5321 4.1.4 (order), RFC 2920 3.1 (pipelining), RFC 3207 4.2 (after STARTTLS), RFC 4954 4
(AUTH).
"""

from __future__ import annotations

from typing import Final

from blackhole.smtp import replies
from blackhole.smtp.command_line import PRIVATE_VERB
from blackhole.smtp.commands import HTTP_VERBS
from blackhole.smtp.engine_tables import BoundCommand
from blackhole.smtp.offer import BASIC_VERBS, Offer
from blackhole.smtp.replies import NextAction, Reply
from blackhole.smtp.state import (
    BINARY_BODY,
    BODY,
    CHUNKED,
    DATA,
    GREETED,
    MAIL,
    RCPT,
    SessionState,
    ViolationContext,
)

OTHER_VERBS: Final = frozenset(verb.encode() for verb in HTTP_VERBS)
"""Verbs of another protocol, whose client has no verdict."""

OTHER_PROTOCOL_REPLIES: Final = (replies.NOT_SMTP, replies.TLS_ON_PLAIN_PORT)
"""Replies to a client of another protocol."""

STAGES: Final = {"MAIL": MAIL, "RCPT": RCPT, "DATA": DATA, "BDAT": CHUNKED}
"""The phases whose refusal a client has to act on, as bits."""


def record_wrong_order(state: SessionState, command: BoundCommand) -> None:
    """Record that a command came at a stage where RFC 5321 4.1.4 does not allow it.

    A command that follows from one that was refused is no violation while the client may not have seen that.
    """
    if not (state.stage & GREETED or state.greeting_omitted):
        state.greeting_omitted = True
        state.record_violation("no-hello-after-starttls" if state.tls_started else "no-hello")
    if command.phase == "RCPT":
        if state.stage & CHUNKED or not (state.outstanding and state.refused & MAIL):
            state.record_violation("wrong-order")
    elif command.phase == "DATA" and state.stage & CHUNKED:
        state.record_violation("data-after-bdat")
    elif command.phase == "DATA" and state.stage & BINARY_BODY and state.stage & RCPT:
        state.record_violation("binary-data")
    elif command.phase in ("DATA", "BDAT"):
        if state.stage & CHUNKED:
            return  # It was recorded with the first chunk.
        if not state.refused & RCPT:
            state.record_violation("wrong-order")
        elif not state.outstanding:
            state.record_violation("no-recipient")
    elif state.stage & MAIL:
        state.record_violation("wrong-order")


def refusal_in_consequence(state: SessionState, phase: str) -> Reply | None:
    """Return the reply to a command that has no meaning because of one that was refused; None if it has.

    Without an accepted sender there are no recipients, and without a recipient no message (RFC 5321 3.3).
    """
    if not state.recipients:
        if state.refused & MAIL and not state.stage & MAIL and phase in ("RCPT", "DATA", "BDAT"):
            return replies.BAD_SEQUENCE
        if state.refused & RCPT and phase in ("DATA", "BDAT"):
            return replies.NO_RECIPIENT
    return None


def record_unoffered(state: SessionState, command: BoundCommand, verb: bytes, argument: bytes) -> None:
    """Record a verb or a mechanism that the reply to EHLO did not offer, and AUTH after it succeeded."""
    if verb in OTHER_VERBS or state.refused & BODY:
        return
    # A transaction or AUTH without EHLO is the violation no-hello. To use the extensions that EHLO would
    # offer is not another one.
    greeted = state.stage & GREETED or command.phase == "STARTTLS"
    offered = state.offered if greeted else state.own_offer
    is_of_other_service = command.phase == "other" and verb.upper() in BASIC_VERBS
    if is_of_other_service or not (offered.has_verb(verb.upper()) or verb.startswith(PRIVATE_VERB)):
        state.record_violation("unknown-command")
    elif command.phase == "AUTH":
        mechanism = argument.split(None, 1)[:1]
        if state.authenticated:
            state.record_violation("wrong-order")
        elif mechanism and not offered.has_mechanism(mechanism[0].upper()):
            state.record_violation("unknown-command")


def record_body_after_refusal(state: SessionState, is_command: bool) -> None:
    """Record that a message came though DATA was refused (RFC 5321 4.1.1.4): once for all of its lines.

    `is_command`: the line behind DATA begins with a verb, and so is no body.
    """
    if is_command:
        state.refused &= ~(DATA | BODY)
    elif state.refused & DATA:
        state.refused ^= DATA | BODY
        state.record_violation("body-after-refusal", ViolationContext(".", state.line))


def note_reply(
    state: SessionState, command: BoundCommand, reply: Reply, offered: Offer, followed: bool
) -> None:
    """Take note of what the client is told, and whether it has to know that before it goes on."""
    if reply.code >= 400 and command.phase in STAGES:
        state.refused |= STAGES[command.phase]
        state.outstanding = offered.pipelining or followed
    if command.last and not followed:
        state.outstanding = False


def record_early_input(state: SessionState, command: BoundCommand, reply: Reply, offered: Offer) -> None:
    """Record that input came behind a command before the reply to it was sent, if that is not allowed."""
    violation_context = ViolationContext(command.phase, state.line)
    if reply.next_action is NextAction.START_TLS:
        state.record_violation("talk-behind-starttls", violation_context)
    elif state.refused & BODY or reply in OTHER_PROTOCOL_REPLIES:
        return  # the lines of a message, or of something else, that is taken for commands
    elif not offered.pipelining:
        state.record_violation("unoffered-pipelining", violation_context)
    elif command.last:
        state.record_violation("pipelined-behind-last", violation_context)


def check_pipelining(
    state: SessionState, command: BoundCommand, reply: Reply, offered: Offer, followed: bool
) -> Reply:
    """Return the reply to a command, which may be another one if input has come behind it too early.

    `offered`: what the client knew of when it sent the command. `followed`: more input has come.
    """
    note_reply(state, command, reply, offered, followed)
    if not followed or reply.next_action is NextAction.END_MESSAGE:
        return reply
    record_early_input(state, command, reply, offered)
    # Commands that somebody put in front of a handshake would run as if they had come under TLS
    # (CVE-2011-0411). What follows DATA before its reply is refused only where the order is enforced.
    if reply.next_action is NextAction.START_TLS or (
        reply.next_action is NextAction.READ_BODY and command.ordered
    ):
        return replies.IMPROPER_PIPELINING
    return reply
