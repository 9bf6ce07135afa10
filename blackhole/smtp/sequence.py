"""The sequence of commands: what a client sends too early, too late or in the wrong order.

Sources: RFC 5321 4.1.4 (order), RFC 2920 3.1 (pipelining), RFC 3207 4.2 (after STARTTLS).
"""

from __future__ import annotations

from blackhole.smtp import replies
from blackhole.smtp.engine_tables import BoundCommand
from blackhole.smtp.replies import NextAction, Reply
from blackhole.smtp.state import GREETED, MAIL, SessionState


def record_wrong_order(state: SessionState, command: BoundCommand) -> None:
    """Record that a command came at a stage where RFC 5321 4.1.4 does not allow it."""
    if not (state.stage & GREETED or state.greeting_omitted):
        state.greeting_omitted = True
        state.record_violation("no-hello-after-starttls" if state.tls_started else "no-hello")
    if state.pipelines and state.envelope_refused:
        return  # It was sent before MAIL or RCPT was refused, which is the server's problem (RFC 2920 3.1).
    if command.phase == "DATA":
        state.record_violation("no-recipient" if state.envelope_refused else "wrong-order")
    elif command.phase == "RCPT" or state.stage & MAIL:
        state.record_violation("wrong-order")


def check_pipelining(
    state: SessionState, command: BoundCommand, reply: Reply, offered: bool, followed: bool
) -> Reply:
    """Return the reply to a command, which may be another one if input has come behind it too early.

    `offered`: the client knew of PIPELINING when it sent the command. `followed`: more input has come.
    """
    if command.is_envelope and reply.code >= 400:
        state.envelope_refused = True
    if not followed:
        return reply
    state.pipelines = True
    starts_tls = reply.next_action is NextAction.START_TLS
    if starts_tls:
        state.record_violation("talk-behind-starttls")
    elif not offered:
        state.record_violation("unoffered-pipelining")
    elif command.last:
        state.record_violation("pipelined-behind-last")
    # Commands that somebody put in front of a handshake would run as if they had come under TLS
    # (CVE-2011-0411). What follows DATA before its reply is refused only where the order is enforced.
    if starts_tls or (reply.next_action is NextAction.READ_BODY and command.ordered):
        return replies.IMPROPER_PIPELINING
    return reply
