"""A rule: its phases, its conditions, when it is in force, and its effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from blackhole.rules.attempt_store import PendingAnswer
from blackhole.rules.comparisons import Comparison
from blackhole.rules.context import RuleContext
from blackhole.rules.draws import DRAW_MASK, GOLDEN_RATIO, Draws, salt, uniform
from blackhole.rules.effects import Effect
from blackhole.rules.globs import GlobSet
from blackhole.rules.limiters import Limiter
from blackhole.smtp.randomness import RandomSource


class Condition(NamedTuple):
    """One condition of a rule."""

    key: str
    """Key in the scenario file."""
    text: str
    """Value as the operator wrote it."""
    matches: Callable[[RuleContext], bool]
    operand: GlobSet | Comparison | None = None
    """What is compared, if it can be indexed."""
    negated: bool = False
    """The rule matches where this does not hold; `matches` says so already."""
    has_parts: bool = False
    """The operand has named parts: `matches` may say no where the operand matches."""

    @property
    def index_key(self) -> GlobSet | Comparison | None:
        """What rules with this condition can be indexed by."""
        return None if self.negated else self.operand


CLIENT_CONDITIONS: Final = frozenset(("listener", "client", "tls"))
"""Conditions that are decided once for a connection, and again after STARTTLS."""

SESSION_CONDITIONS: Final = frozenset(("extension", "recipients", "message", "tls_version"))
"""Conditions on what the session knows, which the context has only where a rule has such a condition."""

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


MESSAGE_PHASES: Final = frozenset(("MAIL", "RCPT", "DATA", "BDAT", "."))
"""Phases in which a message can be refused."""


@dataclass(frozen=True)
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
    limit_counters: tuple[int, ...] = ()
    """Numbers of the counters of what its limiter lets pass and of what it blocks; empty for none."""
    salt: int = field(init=False, default=0)
    """The number that makes its seeded draws differ from those of other rules."""

    def __post_init__(self) -> None:
        if self.seed is not None:
            object.__setattr__(self, "salt", salt(self.seed, self.key))

    @property
    def is_random(self) -> bool:
        """Whether anything is drawn for it."""
        return (
            self.chance < 1.0 or self.effect.is_random or (self.window is not None and self.window.ramp > 0)
        )

    @property
    def depends_on_chance_alone(self) -> bool:
        """Whether nothing but a chance, which never changes, decides whether it matches."""
        return self.chance < 1.0 and self.window is None and self.limiter is None

    @property
    def reads_attempt(self) -> bool:
        """Whether it has a condition on the number of the attempt."""
        return any(condition.key == "attempt" for condition in self.conditions)

    @property
    def draws_by_seed(self) -> bool:
        """Whether it draws by a seed, which takes the number of the attempt."""
        return self.seed is not None and self.is_random

    @property
    def needs_attempt_count(self) -> bool:
        """Whether it depends on the number of the attempt: by a condition, or by its seeded draws."""
        return self.reads_attempt or self.draws_by_seed

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
            effect.fault
            or effect.delay
            or effect.delay_of_client
            or any(reply.code >= 400 for reply in effect.replies)
        )

    def draw_chance(self, context: RuleContext, random_source: RandomSource) -> float:
        """Return the first of its draws: it applies if this is below its probability."""
        if self.seed is None:
            return random_source.random()
        return uniform(context.draw_state ^ self.salt)

    def draw_all(self, chance: float, context: RuleContext, random_source: RandomSource) -> Draws:
        """Return its draws, of which the first is given."""
        if self.seed is None:
            random = random_source.random
            return chance, random(), random(), random()
        state = context.draw_state ^ self.salt
        second, third, fourth = (uniform(state + step * GOLDEN_RATIO & DRAW_MASK) for step in (1, 2, 3))
        return chance, second, third, fourth

    def match(self, blocked: bool | None, draws: Draws, context: RuleContext) -> RuleMatch | None:
        """Return what the limiter's answer makes the rule do; `blocked` is None where there is no answer."""
        if self.limit_counters and blocked is not None:
            context.limit_events += (self.limit_counters[blocked],)
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
