"""What a rule does: replies, delays, faults, and changes of what EHLO offers."""

from __future__ import annotations

import re
from bisect import bisect
from typing import Final, NamedTuple

from blackhole.rules.context import RuleContext
from blackhole.rules.delays import DelayDistribution
from blackhole.smtp.faults import Fault
from blackhole.smtp.replies import NextAction, Reply
from blackhole.tls_menu import USUAL_TLS, TLSParameters

PLACEHOLDER: Final = re.compile(r"\{(client|helo|user|sender|recipient|id)\}")

MAX_REPLY_LINE: Final = 500
"""Octets of text in a line of a reply: a line has 512 with its code and CRLF (RFC 5321 section 4.5.3.1.5)."""


class Template:
    """A reply with placeholders: {client}, {helo}, {user}, {sender}, {recipient}, {id}.

    >>> Template(421, "4.7.0", "Too many from {client}").fill(RuleContext(client="192.0.2.1")).lines
    ('Too many from 192.0.2.1',)
    """

    __slots__ = ("code", "enhanced", "lines")

    def __init__(self, code: int, enhanced: str, *lines: str) -> None:
        self.code: Final = code
        self.enhanced: Final = enhanced
        self.lines: Final = lines

    def fill(self, context: RuleContext) -> Reply:
        """Return the reply. What the client sent is shown in printable ASCII, other octets as "?"."""

        def value(placeholder: re.Match[str]) -> str:
            found = getattr(context, placeholder[1])
            text = f"{found:010X}" if isinstance(found, int) else found
            text = text.decode("latin-1") if isinstance(text, bytes) else text
            return re.sub("[^ -~]", "?", text)

        lines = (PLACEHOLDER.sub(value, line)[:MAX_REPLY_LINE] for line in self.lines)
        return Reply(self.code, self.enhanced, *lines, next_action=action_after(self.code))


def action_after(code: int) -> NextAction:
    """Return what follows a reply with this code: 421 closes the connection (RFC 5321 section 3.8)."""
    return NextAction.CLOSE if code == 421 else NextAction.READ


class Effect(NamedTuple):
    """What a rule does. Without anything set the command is done, and no further rule is asked."""

    replies: tuple[Reply | Template, ...] = ()
    """Replies to draw from: 2xx after the command is done, others instead of it."""
    delay: DelayDistribution | None = None
    fault: Fault | None = None
    replaces_command: bool = False
    """The fault replaces the command, which is not done."""
    hide: tuple[str, ...] = ()
    """EHLO keywords to leave out."""
    add: tuple[str, ...] = ()
    """EHLO lines to add."""
    tls: TLSParameters = USUAL_TLS
    """How to do the TLS handshake; what is empty is as the listener has it."""
    shares: tuple[float, ...] = ()
    """The share of the draws for each reply together with those before it, but the last; empty: all alike."""

    def choose_reply(self, draw: float, context: RuleContext) -> Reply | None:
        """Return the reply for a draw from [0, 1); None if the rule has none."""
        if not self.replies:
            return None
        shares = self.shares
        reply = self.replies[bisect(shares, draw) if shares else int(draw * len(self.replies))]
        return reply.fill(context) if isinstance(reply, Template) else reply

    @property
    def is_random(self) -> bool:
        """Whether a reply or a delay is drawn."""
        return len(self.replies) > 1 or (self.delay is not None and self.delay.is_random)
