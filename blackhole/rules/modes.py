"""The rules of each mode."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from blackhole.rules.effects import Effect
from blackhole.rules.limiters import Greylist
from blackhole.rules.model import Rule
from blackhole.smtp.replies import BOUNCES, CODES, Reply

GREYLISTED: Final = Reply(450, "4.7.1", "Greylisted, try again later")

DEFAULT_GREYLIST: Final = Greylist(300, 2 * 86400)
"""Five minutes to two days, as postgrey has it."""

GREYLIST_KEY: Final = "\1mode"
"""The key of the rule of the mode. It is not printable, as the keys of rules with names are."""

MODE_RULES: Final[Mapping[str, tuple[Rule, ...]]] = MappingProxyType(
    {
        "accept": (),
        "bounce": (Rule(frozenset("."), Effect(BOUNCES)),),
        "random": (Rule(frozenset("."), Effect(BOUNCES), chance=0.5),),
        "greylist": (
            Rule(
                frozenset(("RCPT",)),
                Effect((GREYLISTED,)),
                name="greylist",
                key=GREYLIST_KEY,
                limiter=DEFAULT_GREYLIST,
            ),
        ),
        "unavailable": (Rule(frozenset(("CONNECT",)), Effect((CODES[421],))),),
        "offline": (Rule(frozenset(("CONNECT",)), Effect((CODES[521],))),),
    }
)
"""Mode -> its rules."""
