"""The error budget: limits on the errors, the junk and the mail of one client, as Postfix's smtpd has them.

A session without limits has none. A message clears the errors and the junk, so that a client that sends mail
in between may make a mistake now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from blackhole.smtp import replies
from blackhole.smtp.replies import Reply
from blackhole.smtp.state import CHUNKED, ClientLimits, SessionState

TARPIT: Final = 1.0
"""Seconds by which each reply is delayed to a client that has made too many errors."""

UNLIMITED: Final = 1 << 62
"""More recipients or messages than any session has."""

Meter = Callable[[str], bool]
"""Counts a command of this phase against the client, over all its connections. False: it is one too many."""


def unmetered(phase: str) -> bool:
    """Count nothing, for clients that are not limited over their connections."""
    return True


class ErrorBudget:
    """Counts what one session has done against the limits on its client."""

    __slots__ = ("errors", "junk", "limits", "meter", "slow")

    def __init__(self, limits: ClientLimits, meter: Meter) -> None:
        self.limits = limits
        """Those on errors and junk may change during the session, but not from or to 0."""
        self.meter = meter
        self.errors = 0
        self.junk = 0
        self.slow = False
        """Replies are delayed by TARPIT."""

    def error(self, session: SessionState, reply: Reply) -> Reply:
        """Count an error to be answered with `reply`; return that, or a reply that closes the session."""
        limits = self.limits
        self.errors += 1
        if 0 < limits.soft_errors < self.errors and not self.slow:
            self.slow = True
            session.record_limit("soft_errors")
        if 0 < limits.errors <= self.errors:
            session.record_limit("max_errors")
            return replies.TOO_MANY_ERRORS
        return reply

    def forgive(self) -> None:
        """Forget errors and junk, after a message."""
        self.errors = self.junk = 0
        self.slow = False


# Each function below returns an action that applies limits before it carries the command out. Without a limit
# that concerns it, it returns the action itself, as each of these is one call more.

UntypedAction = Callable[[Any, Any], Reply]

LimitedAction = Callable[[UntypedAction, ClientLimits], UntypedAction]


def limit_rcpt(do: UntypedAction, limits: ClientLimits) -> UntypedAction:
    """Refuse recipients beyond the limit of a message, or of the client."""
    most = limits.recipients or UNLIMITED
    metered = limits.metered

    def limited(session: Any, argument: Any) -> Reply:
        if session.recipients >= most:
            session.recipients += 1
            # A mailing list learns so, recipient by recipient, to send the rest in another message (RFC 5321
            # 4.5.3.1.10). A client that goes on for as long again makes errors.
            excused = session.recipients <= 2 * most
            reply = replies.TOO_MANY_RECIPIENTS
            session.record_limit("max_recipients")
            return reply if excused else session.error_budget.error(session, reply)
        if metered and not session.error_budget.meter("RCPT"):
            session.record_limit("client_recipient_rate")
            return replies.TOO_MANY_CLIENT_RECIPIENTS
        return do(session, argument)

    return limited if metered or limits.recipients else do


def limit_data(do: UntypedAction, limits: ClientLimits) -> UntypedAction:
    """Refuse a message beyond the limit of the session, or of the client."""
    most = limits.messages or UNLIMITED
    metered = limits.metered

    def limited(session: Any, argument: Any) -> Reply:
        if session.messages >= most:
            session.record_limit("max_messages")
            return replies.TOO_MANY_MESSAGES
        if metered and not session.error_budget.meter("DATA"):
            session.record_limit("client_message_rate")
            return replies.TOO_MANY_CLIENT_MESSAGES
        return do(session, argument)

    return limited if metered or limits.messages else do


def limit_chunk(do: UntypedAction, limits: ClientLimits) -> UntypedAction:
    """Refuse a message beyond the limit of the session, or of the client, with its first chunk."""
    first = limit_data(do, limits)

    def limited(session: Any, argument: Any) -> Reply:
        return do(session, argument) if session.stage & CHUNKED else first(session, argument)

    return do if first is do else limited


def limit_end(do: UntypedAction, limits: ClientLimits) -> UntypedAction:
    """Clear errors and junk at the end of a message."""

    def limited(session: Any, argument: Any) -> Reply:
        session.error_budget.forgive()
        return do(session, argument)

    return limited


def limit_starttls(do: UntypedAction, limits: ClientLimits) -> UntypedAction:
    """Refuse a TLS handshake beyond the limit of the client."""

    def limited(session: Any, argument: Any) -> Reply:
        if session.error_budget.meter("STARTTLS"):
            return do(session, argument)
        session.record_limit("client_tls_rate")
        return replies.TOO_MANY_TLS_HANDSHAKES

    return limited


def limit_junk(do: UntypedAction, limits: ClientLimits) -> UntypedAction:
    """Count a command that a client could repeat for ever without sending mail."""

    def limited(session: Any, argument: Any) -> Reply:
        error_budget = session.error_budget
        error_budget.junk += 1
        if error_budget.junk > error_budget.limits.junk:
            session.record_limit("max_junk")
            if error_budget.error(session, replies.OK) is not replies.OK:
                return replies.TOO_MANY_ERRORS
        return do(session, argument)

    return limited if limits.junk else do


LIMITED_ACTIONS: Final[Mapping[str, LimitedAction]] = {
    "RCPT": limit_rcpt,
    "DATA": limit_data,
    "BDAT": limit_chunk,
    ".": limit_end,
    "STARTTLS": limit_starttls,
    **dict.fromkeys(("HELO", "EHLO", "RSET", "NOOP", "VRFY", "EXPN", "HELP"), limit_junk),
}
"""By phase, what applies the limits to its command."""


def with_limits(phase: str, do: UntypedAction, limits: ClientLimits | None) -> UntypedAction:
    """Return the action of a phase for clients with these limits; None: there are none."""
    limit = LIMITED_ACTIONS.get(phase)
    return do if limits is None or limit is None else limit(do, limits)
