"""Conduct: what a client has done that counts against it, and what follows from that.

There is none where nothing is limited. Mistakes and junk are forgiven with each
message, as in Postfix, whose limits these are: who sends mail in between may
make a mistake now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from blackhole.smtp import replies
from blackhole.smtp.replies import Reply
from blackhole.smtp.state import ClientLimits

TARPIT: Final = 1.0
"""Seconds that each reply to a client with too many mistakes is held back."""

NO_LIMIT: Final = 1 << 62

Meter = Callable[[str], bool]
"""Counts one more command of a phase against whoever is at the other end, on all connections
together. False: it is one too many."""


def unmetered(phase: str) -> bool:
    """The meter of those who are not counted."""
    return True


class ErrorBudget:
    """What one client has done so far in this session."""

    __slots__ = ("errors", "junk", "limits", "meter", "slow")

    def __init__(self, limits: ClientLimits, meter: Meter) -> None:
        self.limits = limits
        """Those on mistakes and junk may change meanwhile, but not from nothing or to it."""
        self.meter = meter
        self.errors = 0
        self.junk = 0
        self.slow = False
        """Replies are to be held back."""

    def error(self, reply: Reply) -> Reply:
        """Count an error to be answered with `reply`; return that, or a reply that closes the session."""
        limits = self.limits
        self.errors += 1
        self.slow = 0 < limits.soft_errors < self.errors
        return replies.TOO_MANY_ERRORS if 0 < limits.errors <= self.errors else reply

    def forgive(self) -> None:
        """Forget errors and junk, after a message."""
        self.errors = self.junk = 0
        self.slow = False


# What is put around a command's action, to look at the client's conduct first. An action without a
# limit stays as it is, for each of these is a call more.

Action = Callable[[Any, Any], Reply]

LimitedAction = Callable[[Action, ClientLimits], Action]


def rcpt(do: Action, limits: ClientLimits) -> Action:
    most = limits.recipients or NO_LIMIT
    metered = limits.metered

    def guarded(session: Any, argument: Any) -> Reply:
        if session.recipients >= most:
            session.recipients += 1
            # A mailing list sends the rest in another message, and hears of it recipient by recipient.
            # Who goes on for as long again does not listen.
            answer = replies.TOO_MANY_RECIPIENTS
            excused = session.recipients <= 2 * most
            return answer if excused else session.error_budget.error(answer)
        if metered and not session.error_budget.meter("RCPT"):
            return replies.TOO_MANY_CLIENT_RECIPIENTS
        return do(session, argument)

    return guarded if metered or limits.recipients else do


def data(do: Action, limits: ClientLimits) -> Action:
    most = limits.messages or NO_LIMIT
    metered = limits.metered

    def guarded(session: Any, argument: Any) -> Reply:
        if session.messages >= most:
            return replies.TOO_MANY_MESSAGES
        if metered and not session.error_budget.meter("DATA"):
            return replies.TOO_MANY_CLIENT_MESSAGES
        return do(session, argument)

    return guarded if metered or limits.messages else do


def end(do: Action, limits: ClientLimits) -> Action:
    def guarded(session: Any, argument: Any) -> Reply:
        session.error_budget.forgive()
        return do(session, argument)

    return guarded


def starttls(do: Action, limits: ClientLimits) -> Action:
    def guarded(session: Any, argument: Any) -> Reply:
        return (
            do(session, argument)
            if session.error_budget.meter("STARTTLS")
            else replies.TOO_MANY_TLS_HANDSHAKES
        )

    return guarded


def junk(do: Action, limits: ClientLimits) -> Action:
    def guarded(session: Any, argument: Any) -> Reply:
        error_budget = session.error_budget
        error_budget.junk += 1
        if error_budget.junk > error_budget.limits.junk and error_budget.error(replies.OK) is not replies.OK:
            return replies.TOO_MANY_ERRORS
        return do(session, argument)

    return guarded if limits.junk else do


LIMITED_ACTIONS: Final[Mapping[str, LimitedAction]] = {
    "RCPT": rcpt,
    "DATA": data,
    ".": end,
    "STARTTLS": starttls,
    **dict.fromkeys(("HELO", "EHLO", "RSET", "NOOP", "VRFY", "EXPN", "HELP"), junk),
}
"""Phase -> what is put around it. Junk is what a client may say for ever without sending mail."""


def with_limits(phase: str, do: Action, limits: ClientLimits | None) -> Action:
    """What is done in this phase for clients with these limits."""
    around = LIMITED_ACTIONS.get(phase)
    return do if limits is None or around is None else around(do, limits)
