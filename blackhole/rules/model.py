"""A rule: its phases, its conditions, when it is in force, and its effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import Any, Final, NamedTuple

from blackhole.rules.attempt_store import PendingAnswer
from blackhole.rules.comparisons import Comparison
from blackhole.rules.context import RuleContext
from blackhole.rules.effects import Effect
from blackhole.rules.globs import GlobSet
from blackhole.rules.limiters import Limiter
from blackhole.smtp.randomness import RandomSource

Draws = tuple[float, float, float, float]
"""Four uniform draws in [0, 1): apply?, which reply, and two for the delay."""

NO_DRAWS: Final[Draws] = (0.0, 0.0, 0.0, 0.0)

UNIT: Final = 2.0**-53

DRAWS_DIGEST: Final = Struct(">4Q")
"""The digest of a keyed hash, as four numbers of 64 bits."""


class Condition(NamedTuple):
    """One condition of a rule."""

    key: str
    """Key in the scenario file."""
    text: str
    """Value as the operator wrote it."""
    matches: Callable[[RuleContext], bool]
    index_key: GlobSet | Comparison | None = None
    """What rules with this condition can be indexed by."""


CLIENT_CONDITIONS: Final = frozenset(("listener", "client", "tls"))
"""Conditions that are decided once for a connection, and again after STARTTLS."""

ENVELOPE_CONDITIONS: Final = CLIENT_CONDITIONS | {"sender", "recipient"}
"""Conditions that depend only on the client and on what attempts are counted by."""


class Window(NamedTuple):
    """When a rule is in force, in seconds since the server started.

    >>> outage = Window("outage", begin=60, length=30)
    >>> [outage.share(elapsed) for elapsed in (59, 60, 90)]
    [0.0, 1.0, 0.0]
    """

    name: str
    begin: float
    length: float
    every: float = 0.0
    """Time from one beginning to the next; 0 for a window that opens once."""
    ramp: float = 0.0
    """Time in which the chance of the rule rises from 0, from the beginning on."""

    def share(self, elapsed: float) -> float:
        """Return the share of the chance that is in force: 0 outside the window, 1 after the ramp."""
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
    """Return the hash that draws of a rule begin with; with a copy of it a draw takes 1.5 us, else 2.3."""
    return blake2b(name.encode() + b"\0", digest_size=32, key=b"%d" % seed)


MESSAGE_PHASES: Final = frozenset(("MAIL", "RCPT", "DATA", "BDAT", "."))
"""Phases in which a message can be refused."""


@dataclass(frozen=True, slots=True)
class Rule:
    """An effect, and when it applies: phases, conditions, window, chance and limiter."""

    phases: frozenset[str]
    effect: Effect
    conditions: tuple[Condition, ...] = ()
    chance: float = 1.0
    window: Window | None = None
    name: str = ""
    """Its name, or its number, by which its matches are counted."""
    key: str = ""
    """What its draws, quotas and greylist records belong to. Unlike its name, no other rule has it."""
    seed: int | None = None
    """Seed of its draws; None for draws from the random source of the session."""
    limiter: Limiter | None = None
    """The rule applies to attempts that this blocks."""
    when_unknown: Effect | None = None
    """Effect where the store has no answer; None if the rule does not apply then."""
    counter: int = 0
    """Number of the counter of its matches; 0 for none."""

    @property
    def is_random(self) -> bool:
        """Whether anything is drawn for it."""
        return (
            self.chance < 1.0 or self.effect.is_random or (self.window is not None and self.window.ramp > 0)
        )

    @property
    def hangs_on_chance_alone(self) -> bool:
        """Whether nothing but an unseeded chance, which never changes, decides whether it matches."""
        return self.chance < 1.0 and self.seed is None and self.window is None and self.limiter is None

    @property
    def needs_attempt_count(self) -> bool:
        """Whether it depends on the number of the attempt: by a condition, or by its seeded draws."""
        return any(condition.key == "attempt" for condition in self.conditions) or (
            self.seed is not None and self.is_random
        )

    def for_envelope(self) -> Rule:
        """Return a rule for all commands that this one can match by client, sender and recipient."""
        conditions = tuple(one for one in self.conditions if one.key in ENVELOPE_CONDITIONS)
        return replace(self, conditions=conditions, window=None)

    @property
    def needs_store(self) -> bool:
        """Whether it needs an attempt store."""
        return self.needs_attempt_count or self.limiter is not None

    @property
    def may_refuse(self) -> bool:
        """Whether the rule can refuse, defer, delay or cut off a message."""
        effect = self.effect
        return not self.phases.isdisjoint(MESSAGE_PHASES) and bool(
            effect.fault or effect.delay or any(reply.code >= 400 for reply in effect.replies)
        )

    def draw(self, key: bytes, random_source: RandomSource) -> Draws:
        """Return the draws for a key; with a seed they are the same in every process and run."""
        if self.seed is None:
            random = random_source.random
            return random(), random(), random(), random()
        drawing = keyed_hash(self.seed, self.key).copy()
        drawing.update(key)
        first, second, third, fourth = DRAWS_DIGEST.unpack(drawing.digest())
        # The upper 53 of 64 bits: a float has no more.
        return (first >> 11) * UNIT, (second >> 11) * UNIT, (third >> 11) * UNIT, (fourth >> 11) * UNIT

    def match(self, blocked: bool | None, draws: Draws) -> RuleMatch | None:
        """Return what the limiter's answer makes the rule do; `blocked` is None where there is no answer."""
        effect = self.when_unknown if blocked is None else self.effect if blocked else None
        return None if effect is None else RuleMatch(effect, draws, self.counter)

    def without_attempts(self) -> Rule | None:
        """Return the rule for an attempt of unknown number; None if it does not apply then."""
        others = tuple(condition for condition in self.conditions if condition.key != "attempt")
        if len(others) == len(self.conditions):
            return self
        if self.when_unknown is None:
            return None
        return replace(self, conditions=others, effect=self.when_unknown, limiter=None)

    def probability(self, elapsed: float) -> float:
        """Return the probability that it applies now, if its conditions match."""
        return self.chance if self.window is None else self.chance * self.window.share(elapsed)


class RuleMatch(NamedTuple):
    """The effect of the rule that applies, and what was drawn for it."""

    effect: Effect
    draws: Draws
    counter: int = 0
    """Number of the counter of the rule."""


class PendingMatch(NamedTuple):
    """A decision that waits for an answer of the store."""

    answer: PendingAnswer
    resume: Callable[[Any], RuleMatch | PendingMatch | None]
    """Takes the answer, or None where there is none; returns what is decided then, None for no rule."""
