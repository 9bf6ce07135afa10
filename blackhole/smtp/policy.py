"""Who is refused, and where: a mode is a set of rules over phases."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Final, NamedTuple

from blackhole.smtp.reply import BAD_SEQUENCE, BOUNCES, CODES, Reply
from blackhole.smtp.state import PHASES


class Rule(NamedTuple):
    """In its phase, answer one of `replies` instead of doing what was asked, with probability `chance`."""

    replies: tuple[Reply, ...]
    chance: float = 1.0

    def decide(self, dice: Random) -> Reply | None:
        """The refusal, or None to go on."""
        if self.chance < 1.0 and dice.random() >= self.chance:
            return None
        return dice.choice(self.replies)


Rules = Mapping[str, Rule]
"""Phase -> rule."""

MODES: Final[Mapping[str, Rules]] = {
    "accept": {},
    "bounce": {".": Rule(BOUNCES)},
    "random": {".": Rule(BOUNCES, chance=0.5)},
    "unavailable": {"CONNECT": Rule((CODES[421],))},
    # RFC 5321 3.1: after a refusal in place of the greeting the server waits for QUIT and
    # answers 503 to anything else.
    "offline": {"CONNECT": Rule((CODES[521],))}
    | {phase: Rule((BAD_SEQUENCE,)) for phase in PHASES if phase not in ("CONNECT", "QUIT")},
}
