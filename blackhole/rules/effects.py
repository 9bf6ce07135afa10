"""What a rule does: replies, delays, faults, and changes of what EHLO offers."""

from __future__ import annotations

import re
from bisect import bisect
from typing import Final, NamedTuple

from blackhole.rules.context import RuleContext
from blackhole.rules.delays import DelayDistribution
from blackhole.rules.draws import Draws
from blackhole.rules.named_parts import NAMED_PART, NO_PART_FINDER, NO_PARTS, RESERVED, PartFinder, Parts
from blackhole.smtp.faults import Fault
from blackhole.smtp.replies import NextAction, Reply
from blackhole.tls_menu import USUAL_TLS, TLSParameters

CODE_OF_CLIENT: Final = "{code}"
STATUS_OF_CLIENT: Final = "{status}"
"""In place of the code and the enhanced status code of a reply: those that the client wrote."""

LEAST_REFUSAL: Final = 400
"""What the code of a client counts as, as long as it is not known."""

MAX_REPLY_LINE: Final = 500
"""Octets of text in a line of a reply: a line has 512 with its code and CRLF (RFC 5321 section 4.5.3.1.5)."""


class Template:
    """A reply with placeholders: {client}, {helo}, {user}, {sender}, {recipient}, {id}, and named parts.

    >>> Template(421, "4.7.0", "Too many from {client}").fill(RuleContext(client="192.0.2.1")).lines
    ('Too many from 192.0.2.1',)
    """

    __slots__ = ("code", "code_of_client", "enhanced", "lines")

    def __init__(self, code: int | None, enhanced: str, *lines: str) -> None:
        """`code` is None for the code that the client wrote, and `enhanced` may be STATUS_OF_CLIENT."""
        self.code_of_client: Final = code is None
        self.code: Final = LEAST_REFUSAL if code is None else code
        self.enhanced: Final = enhanced
        self.lines: Final = lines

    @property
    def part_names(self) -> frozenset[str]:
        """The named parts that it shows."""
        texts = (CODE_OF_CLIENT if self.code_of_client else "", self.enhanced, *self.lines)
        return frozenset(NAMED_PART.findall(" ".join(texts))) - RESERVED

    def fill(self, context: RuleContext, parts: Parts = NO_PARTS) -> Reply:
        """Return the reply. What the client sent is shown in printable ASCII, other octets as "?".

        A part that was not found is empty, and so is a status code of another class than the code.
        """

        def value(placeholder: re.Match[str]) -> str:
            name = placeholder[1]
            found = getattr(context, name) if name in RESERVED else parts.get(name, "")
            text = f"{found:010X}" if isinstance(found, int) else found
            text = text.decode("latin-1") if isinstance(text, bytes) else text
            return re.sub("[^ -~]", "?", text)

        code = int(parts["code"]) if self.code_of_client else self.code
        enhanced = self.enhanced
        if enhanced == STATUS_OF_CLIENT:
            enhanced = parts.get("status", "")
            enhanced = enhanced if enhanced.startswith(str(code)[0]) else ""
        lines = (NAMED_PART.sub(value, line)[:MAX_REPLY_LINE] for line in self.lines)
        return Reply(code, enhanced, *lines, next_action=action_after(code))


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
    parts: PartFinder = NO_PART_FINDER
    """Finds what the client wrote in place of named parts."""
    delay_of_client: bool = False
    """The delay is what the client wrote in place of {seconds}."""

    def choose_reply(self, draw: float, context: RuleContext) -> Reply | None:
        """Return the reply for a draw from [0, 1); None if the rule has none."""
        if not self.replies:
            return None
        shares = self.shares
        reply = self.replies[bisect(shares, draw) if shares else int(draw * len(self.replies))]
        return reply.fill(context, self.parts.find(context)) if isinstance(reply, Template) else reply

    def choose_delay(self, draws: Draws, context: RuleContext) -> float | None:
        """Return the seconds of the delay for some draws; None if the rule has none."""
        if self.delay_of_client:
            return float(self.parts.find(context).get("seconds", 0))
        return None if self.delay is None else self.delay.draw(draws[2], draws[3])

    @property
    def is_random(self) -> bool:
        """Whether a reply or a delay is drawn."""
        return len(self.replies) > 1 or (self.delay is not None and self.delay.is_random)
