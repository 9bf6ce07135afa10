"""Engines for tests: configured by keywords, with rules or a mode, and with the numbers of the counters."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from blackhole.compiled_modules import is_compiled
from blackhole.metrics.layout import EventCells
from blackhole.rules.evaluator import NO_ENVIRONMENT, RuleEnvironment, RuleEvaluator, RulePolicy
from blackhole.rules.model import Rule
from blackhole.rules.retry_tracker import RetryTracker
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.engine_tables import TraceFunction
from blackhole.smtp.recorded_session import Recorder
from blackhole.smtp.session import Session
from blackhole.smtp.state import ListenerConfig
from blackhole.smtp.violations import SAMPLED, VIOLATIONS

without_compiled_modules = pytest.mark.skipif(
    is_compiled(), reason="puts functions in the place of others, which compiled modules do not notice"
)

EVENT_NUMBERS = EventCells()

VIOLATION_NAMES = {EVENT_NUMBERS.violation(one.name): one.name for one in VIOLATIONS} | {
    EVENT_NUMBERS.sampled_violation(name): name for name in SAMPLED
}
"""Event of a violation, counted or found in a sample -> the name of the violation."""


def make_policy(
    rules: Sequence[Rule] = (),
    mode: str = "accept",
    listener: str = "",
    environment: RuleEnvironment = NO_ENVIRONMENT,
) -> RulePolicy:
    """Return the policy of a listener with these rules, and behind them those of the mode."""
    return RulePolicy(rules, mode, listener, Random(7), environment, EVENT_NUMBERS.outcome)


def make_engine(
    rules: Sequence[Rule] = (),
    mode: str = "accept",
    listener: str = "",
    environment: RuleEnvironment = NO_ENVIRONMENT,
    trace: TraceFunction | None = None,
    config: ListenerConfig | None = None,
    recorder: Recorder | None = None,
    **values: Any,
) -> SMTPEngine:
    """Return an engine. Give it a configuration, or the values of one that differ from the default."""
    policy = make_policy(rules, mode, listener, environment)
    config = config or ListenerConfig(**values)
    return SMTPEngine(config, policy.random_source, trace, policy, EVENT_NUMBERS, recorder)


def evaluator_of(session: Session) -> RuleEvaluator:
    """Return the evaluator of a session that has rules."""
    assert isinstance(session.policy, RuleEvaluator)
    return session.policy


def tracker_of(session: Session) -> RetryTracker | None:
    """Return the retry tracker of a session that has rules, if it has one."""
    return evaluator_of(session)._tracker
