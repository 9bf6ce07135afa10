"""Rules that hang on chance alone: one draw decides as one draw for each of them would."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from blackhole.rules.chances import ChanceRun, runs
from blackhole.rules.context import RuleContext
from blackhole.rules.explain import evaluate_rule
from blackhole.rules.model import CLIENT_CONDITIONS, PendingMatch, Rule, RuleMatch
from blackhole.rules.scenario_file import parse_rules
from blackhole.rules.table import FEW, RuleTable


def rules(*blocks: str, seed: str = "") -> tuple[Rule, ...]:
    """Rules for RCPT whose replies are numbered from 450."""
    texts = [
        f"[[rule]]\nphase = 'RCPT'\nreply = '{450 + number % 10} 4.2.1 Later'\n{block}\n"
        for number, block in enumerate(blocks)
    ]
    return parse_rules(seed + "".join(texts), "test")


def code(match: object) -> int:
    assert isinstance(match, RuleMatch)
    reply = match.effect.replies[0]
    return reply.code


CHANCES = (0.1, 0.5, 0.25, 0.9, 0.01)


def test_each_rule_of_a_run_matches_as_often_as_it_would_by_a_draw_of_its_own() -> None:
    run, draws, count = ChanceRun(rules(*(f"chance = {chance}" for chance in CHANCES))), Random(7), 40_000
    found = Counter(code(match) if (match := run.match(RuleContext(), draws)) else 0 for _ in range(count))
    missed = 1.0
    for number, chance in enumerate(CHANCES):
        assert found[450 + number] == pytest.approx(missed * chance * count, abs=4 * count**0.5 / 2)
        missed *= 1 - chance
    assert found[0] == pytest.approx(missed * count, abs=4 * count**0.5 / 2)


def test_a_run_has_what_is_decided_by_a_chance_alone() -> None:
    blocks = (
        "chance = 0.5",
        "chance = 0.5\nlistener = 2525",
        "chance = 0.5\nrecipient = 'bob@*'",
        "chance = 0.5",
        "chance = 0.5\nattempt = 2",
        "",
        "chance = 0.5",
    )
    for seed in ("", "seed = 7\n"):
        made = rules(*blocks, seed=seed)
        assert [len(run) for run in runs(made, CLIENT_CONDITIONS)] == [2, 1, 1, 1, 1, 1]


def test_rules_with_and_without_a_seed_are_in_different_runs() -> None:
    made = (*rules("chance = 0.5"), *rules("chance = 0.5", "chance = 0.5", seed="seed = 7\n"))
    assert [len(run) for run in runs(made, CLIENT_CONDITIONS)] == [1, 2]


def test_each_rule_of_a_seeded_run_has_a_draw_of_its_own() -> None:
    """Whatever rules stand before it, and as `explain` evaluates it alone."""
    made = rules(*(f"chance = {chance}" for chance in CHANCES), seed="seed = 7\n")
    table, draws = RuleTable(made), Random()
    for number in range(300):
        context = RuleContext()
        context.phase = "RCPT"
        context.update("RCPT", b"r%d@example.com" % number)
        alone = (rule for rule in made if not evaluate_rule(rule, context, draws)[0])
        wanted = next(alone, None)
        match = table.find(context, draws)
        assert (code(match) if match else None) == (wanted.effect.replies[0].code if wanted else None)
        if match:
            assert wanted is not None and isinstance(match, RuleMatch)
            assert match.draws == evaluate_rule(wanted, context, draws)[1]


@pytest.mark.parametrize("count", [FEW, FEW + 1, 3000])
def test_long_run_of_seeded_rules_lets_other_clients_have_their_turn(count: int) -> None:
    table = RuleTable(rules(*["chance = 1e-9"] * count, seed="seed = 7\n"))
    context = RuleContext()
    context.phase = "RCPT"
    found = [table.find(context, Random()) for _ in range(30)]
    assert any(found) is (count > FEW), "work adds up"
    waiting = [one for one in found if isinstance(one, PendingMatch)]
    assert all(one.resume(None) is None for one in waiting)


def test_rules_before_and_behind_a_run_are_asked_in_their_order() -> None:
    names = [f"recipient = 'user{number}@*'" for number in range(5)]
    table = RuleTable(
        rules(*names, "chance = 1e-9", "chance = 0.999999999", "chance = 0.5", "recipient = 'end@*'")
    )
    context, draws = RuleContext(), Random(7)
    context.update("RCPT", b"user4@example.com")
    assert code(table.find(context, draws)) == 454
    context.update("RCPT", b"end@example.com")
    assert code(table.find(context, draws)) == 456


def test_a_run_that_misses_leaves_the_command_to_the_rules_behind_it() -> None:
    table = RuleTable(rules("chance = 1e-9", "chance = 1e-9", "recipient = 'bob@*'"))
    context = RuleContext()
    context.update("RCPT", b"bob@example.com")
    assert code(table.find(context, Random(7))) == 452
    context.update("RCPT", b"ann@example.com")
    assert table.find(context, Random(7)) is None


def test_what_a_rule_of_a_run_does_is_drawn_anew() -> None:
    (rule,) = parse_rules(
        "[[rule]]\nphase = 'RCPT'\nchance = 0.999999\nreply = ['450 4.2.1 One', '451 4.2.1 Two']\n", "test"
    )
    run, draws = ChanceRun([rule]), Random(7)
    matches = [run.match(RuleContext(), draws) for _ in range(1000)]
    replies = Counter(int(match.draws[1] * 2) for match in matches if match)
    assert 420 < replies[0] < 580 and sum(replies.values()) == 1000
