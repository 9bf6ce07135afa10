"""Random scenarios and sessions: the server replies as the interpreter of the documents predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from blackhole.rules import globs, index, listener_rules, quota_owners, scenario_file, table
from blackhole.rules.context import RuleContext
from blackhole.rules.evaluator import RuleEvaluator
from blackhole.rules.limiters import RateLimit
from blackhole.rules.model import CLIENT_CONDITIONS
from blackhole.smtp.execution import CommandExecution
from blackhole.smtp.state import SessionState
from tests.engines import without_compiled_modules
from tests.fuzz import scenarios

pytestmark = pytest.mark.pure

ENOUGH = 400
"""Scenarios among which each of the faults below shows."""


def test_server_does_what_the_documents_say_in_random_scenarios() -> None:
    result = scenarios.run_block(7, 0, 150)
    assert result.commands > 5000
    assert result.examples == []


@pytest.mark.without_coverage
def test_connection_is_compared_to_its_very_end() -> None:
    """All ways for a connection to end occur, and none hides what comes before it."""
    ends = set()
    for turn in range(100):
        comparison = scenarios.Comparison(scenarios.Random(f"7 {turn}"))
        assert comparison.run(60) == ""
        ends |= comparison.ends
    assert ends == {"close", "reset", "stall"}


Mutation = Callable[[pytest.MonkeyPatch], None]


def letters_by_octets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capital letters outside ASCII are others than small ones, and `?` is one octet."""
    for module in (globs, index):
        monkeypatch.setattr(module, "fold", lambda text: text.lower().decode("latin-1"))


def letters_with_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case is ignored in ASCII only."""
    for module in (globs, index):
        monkeypatch.setattr(module, "fold", lambda text: text.lower().decode(errors="surrogateescape"))


def attempts_with_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greylists and domains tell capital from small letters outside ASCII."""
    monkeypatch.setattr(quota_owners, "fold_octets", bytes.lower)


def connection_quotas_without_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    """`by` does not matter with `per = "connection"`."""
    original = RateLimit._blocks_connection

    def changed(self: RateLimit, rule_key: str, amount: int, context: RuleContext) -> bool:
        return original(self._replace(by=("client",)), rule_key, amount, context)

    monkeypatch.setattr(RateLimit, "_blocks_connection", changed)


def forgetful_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """RSET or EHLO that a rule refuses makes the rules forget the transaction, which stays open."""
    original = RuleEvaluator.answered

    def changed(self: RuleEvaluator, session: SessionState, phase: str, code: int) -> None:
        original(self, session, phase, code)
        if phase in ("RSET", "EHLO", "HELO"):
            self.context.sender = self.context.recipient = b""

    monkeypatch.setattr(RuleEvaluator, "answered", changed)


def kept_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a refused EHLO holds."""
    original = RuleEvaluator.answered

    def changed(self: RuleEvaluator, session: SessionState, phase: str, code: int) -> None:
        name = self.context.helo
        original(self, session, phase, code)
        self.context.helo = name

    monkeypatch.setattr(RuleEvaluator, "answered", changed)


def transaction_behind_a_refused_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    """MAIL that a rule refuses leaves the transaction before it open."""
    original = CommandExecution.carry_out

    def changed(self: CommandExecution, *arguments: Any) -> Any:
        mail, self.engine.mail = self.engine.mail, self.engine.unknown  # type: ignore[misc]
        reply = original(self, *arguments)
        self.engine.mail = mail  # type: ignore[misc]
        return reply

    monkeypatch.setattr(CommandExecution, "carry_out", changed)


def rules_with_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules of the same name share what they remember, and so do the third rule and one named "3"."""
    monkeypatch.setattr(
        scenario_file,
        "_with_own_keys",
        lambda rules, before: tuple(replace(rule, key=rule.name) for rule in rules),
    )


def attempts_without_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """All phases count together."""
    monkeypatch.setattr(RuleContext, "attempt_key", lambda self, pair_key: pair_key)


def attempts_of_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts that no rule can match by its client are counted."""
    monkeypatch.setattr(table, "_conditions", lambda rule, decided: _all(rule))
    monkeypatch.setattr(listener_rules, "_can_match", lambda rule, context: True)


def _all(rule: Any) -> Any:
    return tuple(table._test(one) for one in rule.conditions if one.key not in CLIENT_CONDITIONS)


@pytest.mark.without_coverage
@pytest.mark.parametrize(
    "mutation",
    [
        letters_by_octets,
        letters_with_case,
        attempts_with_case,
        connection_quotas_without_domains,
        forgetful_refusals,
        kept_names,
        transaction_behind_a_refused_mail,
        rules_with_one_name,
        attempts_without_phase,
        attempts_of_everybody,
    ],
)
@without_compiled_modules
def test_model_notices(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    blocks = (scenarios.run_block(7, number, 20) for number in range(ENOUGH // 20))
    assert any(block.differences for block in blocks)
