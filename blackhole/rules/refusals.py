"""Counting refused recipients, for the rules that limit them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from blackhole.rules.attempt_store import AttemptStore, PendingAnswer
from blackhole.rules.conduct import RefusalLimit
from blackhole.rules.context import RuleContext
from blackhole.rules.effects import Effect
from blackhole.rules.model import Rule
from blackhole.smtp.policy import Decision, PendingDecision

LEAST_CODE: Final = 500
"""From this code on a refusal counts: what is deferred may be a good recipient."""


def count_refused(
    decision: Decision,
    effect: Effect,
    limits: Iterator[tuple[Rule, RefusalLimit]],
    context: RuleContext,
    store: AttemptStore,
    answer: object = None,
) -> Decision | PendingDecision:
    """Return a decision that refuses a recipient by this effect, after counting it for the limits left.

    What a rule refuses because of its own limit does not count for it.
    """
    for rule, limiter in limits:
        conditions = (one for one in rule.conditions if one.key != "attempt")
        if rule.effect is effect or not all(one.matches(context) for one in conditions):
            continue
        counted = limiter.count_refused(rule.key, context, store)
        if isinstance(counted, PendingAnswer):
            return PendingDecision(counted, partial(count_refused, decision, effect, limits, context, store))
    return decision
