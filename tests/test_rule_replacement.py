"""Replaced rules: when sessions that are under way follow them, and what is kept."""

from __future__ import annotations

import gc
import weakref

import pytest

from blackhole.rules.attempt_store import NULL_STORE, AttemptStore, ScopedStore, count_attempt
from blackhole.rules.evaluator import RuleEnvironment, RuleEvaluator
from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.session import Session
from blackhole.store.attempts import AttemptTable
from tests.engines import make_engine, make_policy


def codes(session: Session, *lines: str) -> list[str]:
    """Return the reply codes to these lines, sent one by one."""
    return [session.receive(f"{line}\r\n".encode())[:3].decode() for line in lines]


def replace_rules(old: SMTPEngine, *rules: str, memory: AttemptStore = NULL_STORE) -> SMTPEngine:
    """Replace the rules of an engine, and return its successor."""
    text = "".join(f"[[rule]]\n{rule}\n" for rule in rules)
    return old.replace_policy(
        make_policy(
            parse_rules(text, "successor") if rules else (), environment=RuleEnvironment(attempt_store=memory)
        )
    )


LATER = 'phase = "RCPT"\nreply = "451 4.3.0 Later"'
TO_MAIL = ("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>")


def test_a_session_follows_replaced_rules_from_its_next_command_on() -> None:
    engine = make_engine()
    session = engine.session()
    session.greet()
    assert codes(session, "HELO client.test", *TO_MAIL, "RSET") == ["250"] * 4
    successor = replace_rules(engine, LATER)
    assert codes(session, *TO_MAIL) == ["250", "451"]
    assert session.engine is successor
    assert codes(successor.session(), *TO_MAIL) == ["250", "451"]


def test_a_transaction_ends_under_the_rules_under_which_it_began() -> None:
    engine = make_engine()
    session = engine.session()
    session.greet()
    assert codes(session, TO_MAIL[0]) == ["250"]
    successor = replace_rules(replace_rules(engine), LATER)
    assert codes(session, TO_MAIL[1], "DATA") == ["250", "354"]
    assert session.engine is engine
    assert codes(session, "a body\r\n.", *TO_MAIL) == ["250", "250", "451"]
    assert codes(session, "RSET") == ["250"]
    assert session.engine is successor


def test_a_transaction_that_stays_open_keeps_none_of_the_engines_that_came_after_its_own() -> None:
    engine = make_engine()
    session = engine.session()
    session.greet()
    assert codes(session, TO_MAIL[0]) == ["250"]
    later = []
    for _ in range(3):
        engine = replace_rules(engine, LATER)
        later.append(weakref.ref(engine.policy.phases))  # made for it alone
    gc.collect()
    assert [one() for one in later] == [None, None, engine.policy.phases]
    assert codes(session, "RSET", *TO_MAIL) == ["250", "250", "451"]
    assert session.engine is engine


def test_sessions_of_several_replaced_engines_all_go_over_to_the_newest() -> None:
    engine = make_engine()
    sessions = []
    for _ in range(3):
        sessions.append(engine.session())
        sessions[-1].greet()
        assert codes(sessions[-1], TO_MAIL[0]) == ["250"]
        engine = replace_rules(engine, LATER)
    for session in sessions:
        assert codes(session, "RSET", *TO_MAIL) == ["250", "250", "451"]
        assert session.engine is engine


def test_an_auth_exchange_ends_under_the_rules_under_which_it_began() -> None:
    engine = make_engine(auth=True, auth_plaintext=True)
    session = engine.session()
    session.greet()
    assert codes(session, "EHLO client.test", "AUTH LOGIN") == ["250", "334"]
    successor = replace_rules(engine)
    assert codes(session, "YQ==", "YQ==", "NOOP") == ["334", "235", "250"]
    assert session.engine is successor


def test_a_client_that_was_not_greeted_yet_is_greeted_under_the_new_rules() -> None:
    engine = make_engine()
    session = engine.session()
    replace_rules(engine, 'phase = "CONNECT"\nreply = "554 5.3.2 No"')
    assert session.greet() == b"554 5.3.2 No\r\n"


def test_a_client_refused_at_connect_stays_refused_under_the_new_rules() -> None:
    engine = make_engine(mode="offline")
    session = engine.session()
    assert session.greet()[:3] == b"521"
    replace_rules(engine, 'phase = "CONNECT"\nreply = "accept"')
    assert codes(session, *TO_MAIL, "QUIT") == ["503", "503", "221"]


def test_new_rules_know_the_client_address_and_its_earlier_helo() -> None:
    engine = make_engine()
    session = engine.session(client="192.0.2.1")
    session.greet()
    assert codes(session, "HELO client.test") == ["250"]
    successor = replace_rules(engine, f'{LATER}\nclient = "192.0.2.0/24"\nhelo = "nobody"')
    assert codes(session, "HELO me.test", "VRFY x") == ["250", "252"]
    replace_rules(successor, f'{LATER}\nclient = "192.0.2.0/24"\nhelo = "me.test"')
    assert codes(session, *TO_MAIL) == ["250", "451"]


ONE_CONNECTION = 'throttle = { concurrent = 1, by = "client" }\nreply = "421 4.7.0 Crowded"'
ONE_MESSAGE = 'throttle = { messages = 1, per = "connection" }\nreply = "450 4.7.0 Enough"'


@pytest.mark.parametrize("same", [True, False], ids=["same store", "another store"])
def test_used_quotas_and_slots_are_kept_if_the_store_is_the_same(same: bool) -> None:
    store = AttemptTable(sets=64)
    engine = replace_rules(make_engine(), ONE_CONNECTION, ONE_MESSAGE, memory=store)
    session = engine.session()
    assert session.greet()[:3] == b"220"
    assert codes(session, TO_MAIL[0], "RSET") == ["250", "250"]
    replace_rules(engine, ONE_CONNECTION, ONE_MESSAGE, memory=store if same else ScopedStore(store, b"2"))
    assert codes(session, TO_MAIL[0]) == ["450" if same else "250"]
    other = replace_rules(make_engine(), ONE_CONNECTION, memory=store)
    assert other.session().greet()[:3] == (b"421" if same else b"220")
    session.closed()
    assert other.session().greet()[:3] == (b"220" if same else b"421")


def test_a_session_has_no_evaluator_once_all_rules_are_removed() -> None:
    store = AttemptTable(sets=64)
    engine = replace_rules(make_engine(), ONE_CONNECTION, memory=store)
    session = engine.session()
    session.greet()
    replace_rules(engine)
    assert codes(session, "NOOP") == ["250"]
    assert not isinstance(session.policy, RuleEvaluator)
    assert engine.session().greet()[:3] == b"220", "its slot is free"


def test_records_of_one_scope_are_invisible_in_another() -> None:
    store = AttemptTable(sets=64)
    first, second = ScopedStore(store, b"1"), ScopedStore(store, b"2")
    assert [scope.update(b"key", 1.0, count_attempt) for scope in (first, first, second, first)] == [
        1,
        2,
        1,
        3,
    ]
