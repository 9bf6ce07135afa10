"""Conduct: what a client has done that counts against it, and what follows from that.

There is none where nothing is limited. Mistakes and junk are forgiven with each
message, as in Postfix, whose limits these are: who sends mail in between may
make a mistake now and then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from blackhole.smtp import reply
from blackhole.smtp.reply import Reply
from blackhole.smtp.state import Limits, State

TARPIT: Final = 1.0
"""Seconds that each reply to a client with too many mistakes is held back."""

Meter = Callable[[str], bool]
"""Counts one more command of a phase against whoever is at the other end, on all connections
together. False: it is one too many."""


def unmetered(phase: str) -> bool:
    """The meter of those who are not counted."""
    return True


class Conduct:
    """What one client has done so far in this session."""

    __slots__ = ("errors", "junk", "limits", "messages", "meter")

    def __init__(self, limits: Limits, meter: Meter) -> None:
        self.limits = limits
        self.meter = meter
        self.errors = 0
        self.junk = 0
        self.messages = 0

    @property
    def slow(self) -> bool:
        """Whether replies are to be held back."""
        return 0 < self.limits.soft_errors < self.errors

    def allows(self, recipients: int) -> bool:
        """Whether a message to so many can begin without a look at each recipient."""
        limits = self.limits
        return (
            not limits.metered
            and recipients <= (limits.recipients or recipients)
            and not 0 < limits.messages <= self.messages
        )

    def error(self, answer: Reply) -> Reply:
        """The client made a mistake; what to answer."""
        self.errors += 1
        return reply.TOO_MANY_ERRORS if 0 < self.limits.errors <= self.errors else answer


# What is looked at before a command is obeyed: the refusal, or None.

Check = Callable[[Conduct, State], Reply | None]


def rcpt(conduct: Conduct, state: State) -> Reply | None:
    most = conduct.limits.recipients
    if 0 < most <= state.recipients:
        state.recipients += 1
        # A mailing list sends the rest in another message, and hears of it recipient by recipient.
        # Who goes on for as long again does not listen.
        answer = reply.TOO_MANY_RECIPIENTS
        return answer if state.recipients <= 2 * most else conduct.error(answer)
    return None if conduct.meter("RCPT") else reply.TOO_MUCH_RECIPIENTS


def data(conduct: Conduct, state: State) -> Reply | None:
    if 0 < conduct.limits.messages <= conduct.messages:
        return reply.TOO_MANY_MESSAGES
    conduct.messages += 1
    return None if conduct.meter("DATA") else reply.TOO_MUCH_MAIL


def end(conduct: Conduct, state: State) -> Reply | None:
    conduct.errors = conduct.junk = 0
    return None


def starttls(conduct: Conduct, state: State) -> Reply | None:
    return None if conduct.meter("STARTTLS") else reply.TOO_MUCH_TLS


def junk(conduct: Conduct, state: State) -> Reply | None:
    conduct.junk += 1
    if 0 < conduct.limits.junk < conduct.junk and conduct.error(reply.OK) is not reply.OK:
        return reply.TOO_MANY_ERRORS
    return None


CHECKS: Final = {
    "RCPT": rcpt,
    "DATA": data,
    ".": end,
    "STARTTLS": starttls,
    **dict.fromkeys(("HELO", "EHLO", "RSET", "NOOP", "VRFY", "EXPN", "HELP"), junk),
}
"""Phase -> check. Junk is what a client may say for ever without sending mail."""
