"""A rule: its phases, its conditions, when it is in force, and its effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import Any, Final, NamedTuple

from blackhole.rules.attempt_store import PendingAnswer
from blackhole.rules.context import RuleContext
from blackhole.rules.effects import Effect
from blackhole.rules.limiters import Limiter
from blackhole.rules.patterns import Comparison, GlobSet
from blackhole.smtp.randomness import RandomSource

Draws = tuple[float, float, float, float]
"""Four uniform draws in [0, 1): apply?, which reply, and two for the delay."""


NO_DRAWS: Final[Draws] = (0.0, 0.0, 0.0, 0.0)


DRAWS: Final = Struct(">4Q")


class Condition(NamedTuple):
    """One condition of a rule."""

    key: str
    """As the scenario file names it: the attribute of a Case that it looks at."""
    text: str
    """As the operator wrote it."""
    matches: Callable[[RuleContext], bool]
    index_key: GlobSet | Comparison | None = None
    """How it compares, if it can be found by that."""
    consumes: bool = False
    """To ask it changes something."""


CLIENT_CONDITIONS: Final = frozenset(("listener", "client", "tls"))
"""Conditions that can be decided once for a connection, and once more under TLS."""


ENVELOPE_CONDITIONS: Final = CLIENT_CONDITIONS | {"sender", "recipient", "attempt"}
"""Conditions that hang on nothing but who the client is, and on what its attempts are counted by."""


class Window(NamedTuple):
    """When a rule is in force. All in seconds; the clock starts with the server."""

    name: str
    begin: float
    length: float
    every: float = 0.0
    """From one beginning to the next; 0: it comes once."""
    ramp: float = 0.0
    """How long it takes from the beginning until the rule's chance has risen from 0 to what it is."""

    def share(self, elapsed: float) -> float:
        """0 outside, 1 inside, and between them on the ramp."""
        since = elapsed - self.begin
        if since < 0:
            return 0.0
        if self.every:
            since %= self.every
        if since >= self.length:
            return 0.0
        return min(1.0, since / self.ramp) if self.ramp else 1.0


@lru_cache(maxsize=1024)
def keyed_hash(seed: int, name: str) -> blake2b:
    """What a rule of that name draws from, begun: with it a draw takes 1.5 microseconds, without 2.3."""
    return blake2b(name.encode() + b"\0", digest_size=32, key=b"%d" % seed)


MESSAGE_PHASES: Final = frozenset(("MAIL", "RCPT", "DATA", "."))
"""Phases in which a message is taken or not."""


@dataclass(frozen=True, slots=True)
class Rule:
    """In its phases, and where all its tests hold, its verdict; or, with probability 1 - chance, none."""

    phases: frozenset[str]
    effect: Effect
    conditions: tuple[Condition, ...] = ()
    chance: float = 1.0
    window: Window | None = None
    name: str = ""
    """Its own, or its number: what its draws hang on, besides the context."""
    seed: int | None = None
    """None: draws are thrown with the session's dice."""
    limiter: Limiter | None = None
    """A condition that remembers: the rule speaks where it is shut."""
    when_unknown: Effect | None = None
    """What it says where the memory has no answer; None: nothing."""
    counter: int = 0
    """Where it is counted that it spoke; 0: nowhere."""

    @property
    def is_random(self) -> bool:
        """Whether chance has a part in it."""
        return (
            self.chance < 1.0 or self.effect.is_random or (self.window is not None and self.window.ramp > 0)
        )

    @property
    def needs_attempt_count(self) -> bool:
        """Whether it has to be known how many times this was tried."""
        return any(test.key == "attempt" for test in self.conditions) or (
            self.seed is not None and self.is_random
        )

    @property
    def depends_only_on_envelope(self) -> bool:
        """Whether it is for the same addresses from the same client always, whatever else is said."""
        return all(test.key in ENVELOPE_CONDITIONS for test in self.conditions)

    @property
    def needs_store(self) -> bool:
        """Whether it needs a memory."""
        return self.needs_attempt_count or self.limiter is not None

    @property
    def may_refuse(self) -> bool:
        """Whether mail may not be taken because of it, or not at once, or not for sure."""
        effect = self.effect
        return not self.phases.isdisjoint(MESSAGE_PHASES) and bool(
            effect.fault or effect.delay or any(said.code >= 400 for said in effect.replies)
        )

    def draw(self, tried: bytes, random_source: RandomSource) -> Draws:
        """The draws. With a seed they are the same in every process and every run: a keyed hash of what is
        tried."""
        if self.seed is None:
            return (
                random_source.random(),
                random_source.random(),
                random_source.random(),
                random_source.random(),
            )
        drawing = keyed_hash(self.seed, self.name).copy()
        drawing.update(tried)
        first, second, third, fourth = DRAWS.unpack(drawing.digest())
        # 53 of the 64 bits: as many as a float has.
        return (first >> 11) / 2**53, (second >> 11) / 2**53, (third >> 11) / 2**53, (fourth >> 11) / 2**53

    def decide(self, shut: bool | None, draws: Draws) -> Decision | None:
        """What it says, once it is known whether its gate is shut, or that nobody knows."""
        effect = self.when_unknown if shut is None else self.effect if shut else None
        return None if effect is None else Decision(effect, draws, self.counter)

    def without_attempts(self) -> Rule | None:
        """What is left of it where nobody knows how often anything was tried."""
        tests = tuple(test for test in self.conditions if test.key != "attempt")
        if len(tests) == len(self.conditions):
            return self
        if self.when_unknown is None:
            return None
        return replace(self, conditions=tests, effect=self.when_unknown, limiter=None)

    def probability(self, elapsed: float) -> float:
        """How likely it is to speak now, if its tests hold."""
        return self.chance if self.window is None else self.chance * self.window.share(elapsed)


class Decision(NamedTuple):
    """A verdict, and what was drawn for it."""

    effect: Effect
    draws: Draws
    counter: int = 0
    """Where it is counted."""


class PendingDecision(NamedTuple):
    """What is said hangs on an answer that is still to come."""

    answer: PendingAnswer
    resume: Callable[[Any], Decision | PendingDecision | None]
    """Told the answer, or None where there is none: what is said then."""
