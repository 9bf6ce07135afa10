"""Namespaces without a server: how a session chooses one, whose rules decide, and what is counted for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

import pytest

from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import ROW_CELLS
from blackhole.metrics.namespace_counters import MAX_COUNTED_CELLS, NamespaceCounters
from blackhole.net.connection import Connection
from blackhole.net.listener_setup import make_recorder
from blackhole.net.namespace_accounts import AccountedCells, NamespaceAccounts, NamespaceScenario
from blackhole.net.server import SMTPServer
from blackhole.net.server_namespaces import ServerNamespaces
from blackhole.process.namespace_scenarios import NamespaceScenarios
from blackhole.rules.evaluator import RuleEnvironment, RulePolicy
from blackhole.rules.namespaces import NamespaceEvaluator, NamespacePolicy, tag_of
from blackhole.rules.scenario_file import parse_rules
from blackhole.settings import NAMESPACE_KEYS, Listener, OperatorError, Settings
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.policy import NO_SESSION_POLICY
from blackhole.smtp.session import Session
from blackhole.smtp.state import LMTP, ListenerConfig
from blackhole.store import namespaces
from blackhole.store.active_scenario import NO_SCENARIO
from blackhole.store.attempts import AttemptTable
from blackhole.store.control import MAX_NAMESPACES, ControlChannel, NamespaceEntry, RuntimeOrder
from blackhole.store.namespaces import NamespaceDirectory, NamespaceOrders, NamespacesFull
from blackhole.store.one_shot_rules import OneShotRule
from blackhole.store.outcome_table import OutcomeTable
from tests.engines import EVENT_NUMBERS, make_policy

pytestmark = pytest.mark.pure

ALL_KEYS = tuple(NAMESPACE_KEYS)

NO = 'phase = "RCPT"\nreply = "550 5.1.1 No"'
LATER = 'phase = "."\nreply = "451 4.3.0 Later"'
HELLO = 'phase = ["HELO", "EHLO"]\nreply = "550 5.7.1 Go away"'
LOGIN = 'phase = "AUTH"\nreply = "535 5.7.8 No"'


def policy_of(
    rules: dict[str, str],
    keys: Sequence[str] = ALL_KEYS,
    listener: bytes = b"2525",
    environment: RuleEnvironment | None = None,
) -> NamespacePolicy:
    """Return the policy of namespaces with one rule each, or with none; that of "" is for all others."""
    environment = environment or RuleEnvironment()

    def made(rule: str) -> object:
        parsed = parse_rules(f"[[rule]]\n{rule}\n", "test") if rule else ()
        return make_policy(parsed, environment=environment)

    policies = {name.encode(): made(rule) for name, rule in rules.items() if name}
    return NamespacePolicy(made(rules.get("", "")), policies, keys, listener)  # type: ignore[arg-type]


def engine_of(policy: NamespacePolicy, **values: object) -> SMTPEngine:
    values = {"auth": True, "auth_plaintext": True, **values}
    return SMTPEngine(ListenerConfig(**values), Random(7), None, policy, EVENT_NUMBERS)  # type: ignore[arg-type]


def greeted(policy: NamespacePolicy, **values: object) -> Session:
    session = engine_of(policy, **values).session(client="192.0.2.1")
    session.greet()
    return session


def codes(session: Session, *lines: str) -> list[str]:
    """Return the codes of the replies to lines that are sent one by one."""
    found = [session.receive(f"{line}\r\n".encode()) for line in lines]
    return [out.splitlines()[-1][:3].decode() for out in found]


def message(*recipients: str) -> tuple[str, ...]:
    to = (f"RCPT TO:<{one}>" for one in recipients)
    return ("MAIL FROM:<ann@example.com>", *to, "DATA", "Subject: x\r\n\r\nx\r\n.")


TAGGED = "bob+ns.one@example.com"
OTHER = "bob+ns.two@example.com"
PLAIN = "bob@example.com"
LOGIN_AS_ONE = "AUTH PLAIN AG9uZQB4"  # the user one, with the password x


@pytest.mark.parametrize(
    ("address", "tag"),
    [
        (b"a+ns.One@example.com", b"one"),
        (b"a+x+ns.one+y@example.com", b"one"),
        (b'"a+ns.one"@example.com', b"one"),
        (b"a+ns.one", b"one"),
        (b"a@ns.example.com", b""),
        (b"postmaster", b""),
        (b"a@b+ns.one.example.com", b""),
    ],
)
def test_tag_is_between_its_mark_and_the_next_plus_of_the_local_part(address: bytes, tag: bytes) -> None:
    assert tag_of(address) == tag


@pytest.mark.parametrize("pipelined", [False, True])
def test_recipient_with_a_tag_is_decided_on_by_its_namespace(pipelined: bool) -> None:
    session = greeted(policy_of({"one": NO, "two": LATER}))
    codes(session, "EHLO client.test")
    if pipelined:
        group = "".join(f"{line}\r\n" for line in message(OTHER)[:-1])
        assert session.receive(group.encode()).splitlines()[-1][:3] == b"354"
        assert codes(session, message(OTHER)[-1]) == ["451"]
    assert codes(session, *message(TAGGED)[:2], "RSET") == ["250", "550", "250"]
    assert codes(session, *message(OTHER)) == ["250", "250", "354", "451"]
    assert codes(session, *message(PLAIN)) == ["250", "250", "354", "250"]


def test_message_is_decided_on_by_the_namespace_of_its_first_accepted_recipient() -> None:
    session = greeted(policy_of({"one": NO, "two": LATER, "three": ""}))
    codes(session, "EHLO client.test")
    assert codes(session, *message(TAGGED, OTHER, PLAIN)) == ["250", "550", "250", "250", "354", "451"]
    assert codes(session, *message(PLAIN, OTHER)) == ["250", "250", "250", "354", "250"]


def test_lmtp_decides_for_each_recipient_by_its_namespace() -> None:
    session = greeted(policy_of({"one": "", "two": LATER}), service=LMTP)
    assert codes(session, "LHLO client.test", *message(TAGGED, OTHER)[:-1]) == [
        "250",
        "250",
        "250",
        "250",
        "354",
    ]
    answers = session.receive(b"Subject: x\r\n\r\nx\r\n.\r\n").splitlines()
    assert [answer[:3] for answer in answers] == [b"250", b"451"]


def test_user_outweighs_helo_and_helo_outweighs_the_listener() -> None:
    policy = policy_of({"one": NO, "two": LATER, "2525": "", "": NO})
    session = greeted(policy)
    assert codes(session, "HELO client.test", *message(PLAIN)) == ["250"] * 3 + ["354", "250"]
    assert codes(session, "HELO TWO", *message(PLAIN)) == ["250", "250", "250", "354", "451"]
    assert codes(session, "EHLO two", LOGIN_AS_ONE, *message(PLAIN)[:2]) == ["250", "235", "250", "550"]
    assert codes(session, "RSET", *message(OTHER)) == ["250", "250", "250", "354", "451"]


def test_keys_that_are_not_given_choose_nothing() -> None:
    session = greeted(policy_of({"one": NO, "two": NO, "2525": NO}, keys=()))
    assert codes(session, "EHLO two", LOGIN_AS_ONE, *message(TAGGED)[:2]) == ["250", "235", "250", "250"]


def test_namespace_that_refuses_a_name_or_a_user_is_left_again() -> None:
    session = greeted(policy_of({"one": LOGIN, "two": HELLO}))
    assert codes(session, "HELO two", *message(PLAIN)[:2]) == ["550", "250", "250"]
    assert codes(session, "RSET", "EHLO client.test", LOGIN_AS_ONE) == ["250", "250", "535"]
    policy = session.policy
    assert isinstance(policy, NamespaceEvaluator)
    assert policy.namespace_of_transaction(ended=False) == b""


def test_tls_begins_anew_and_keeps_the_namespace_of_the_listener() -> None:
    session = greeted(policy_of({"one": NO, "2525": LATER}), starttls=True)
    assert codes(session, "EHLO one", *message(PLAIN)[:2], "RSET", "STARTTLS")[2] == "550"
    session.secured()
    assert codes(session, "EHLO client.test", *message(PLAIN)) == ["250", "250", "250", "354", "451"]
    same = greeted(policy_of({"2525": LATER}), starttls=True)
    codes(same, "EHLO client.test", "STARTTLS")
    same.secured()
    assert codes(same, "EHLO client.test", *message(PLAIN))[-1] == "451"


def test_client_that_xclient_names_chooses_by_its_name_and_user() -> None:
    session = greeted(policy_of({"one": NO}))
    session.policy.introduce(b"one", b"")
    assert codes(session, *message(PLAIN)[:2]) == ["250", "550"]


def test_session_follows_the_rules_that_replace_those_of_its_namespace() -> None:
    engine = engine_of(policy_of({"": NO}))
    session = engine.session(client="192.0.2.1")
    session.greet()
    assert codes(session, "HELO one", *message(PLAIN)[:2], "RSET") == ["250", "250", "550", "250"]
    engine = engine.replace_policy(policy_of({"one": LATER, "": NO}))
    assert codes(session, *message(PLAIN)) == ["250", "250", "354", "451"]
    engine = engine.replace_policy(policy_of({"one": "", "": NO}))
    assert codes(session, *message(PLAIN)) == ["250", "250", "354", "250"]
    engine.replace_policy(make_policy(parse_rules(f"[[rule]]\n{NO}", "test")))
    assert codes(session, *message(PLAIN)[:2]) == ["250", "550"]


def test_slots_of_a_concurrency_limit_are_released_with_the_namespace() -> None:
    table = AttemptTable(sets=64)
    limit = 'phase = "RCPT"\nthrottle = { concurrent = 1, by = "recipient" }\nreply = "421 4.7.0 Busy"'
    policy = policy_of({"one": limit, "two": ""}, environment=RuleEnvironment(attempt_store=table))
    first, second = greeted(policy), greeted(policy)
    assert codes(first, "EHLO a.test", *message(TAGGED)[:2]) == ["250", "250", "250"]
    assert codes(second, "EHLO a.test", *message(TAGGED)[:2])[-1] == "421"
    assert codes(first, "RSET", *message(OTHER)[:2])[-1] == "250"
    assert codes(greeted(policy), "EHLO a.test", *message(TAGGED)[:2])[-1] == "250"
    second.closed()


def test_retries_are_tracked_over_all_namespaces() -> None:
    environment = RuleEnvironment(outcome_store=OutcomeTable())
    policy = policy_of({"one": LATER, "two": ""}, environment=environment)
    session = greeted(policy)
    assert codes(session, "HELO client.test", *message(TAGGED))[-1] == "451"
    assert codes(session, *message(OTHER))[-1] == "250"
    assert EVENT_NUMBERS.outcome("deferred") in session.counted_events or session.messages == 2
    engine = session.engine
    assert isinstance(engine, SMTPEngine)
    engine.replace_policy(policy_of({"one": "", "two": ""}, environment=environment))
    assert codes(session, *message(TAGGED))[-1] == "250"
    session.closed()


def test_rules_that_read_the_session_hold_in_a_namespace() -> None:
    count = 'phase = "RCPT"\nrecipients = ">= 2"\nreply = "452 4.5.3 Too many"'
    session = greeted(policy_of({"one": count}))
    assert codes(session, "HELO a.test", *message(TAGGED, TAGGED)[:3]) == ["250", "250", "250", "452"]


def test_policy_tells_what_a_session_tells_it() -> None:
    session = greeted(policy_of({"one": LATER}))
    policy = session.policy
    policy.set_local_address(lambda: "192.0.2.1")
    policy.client_sent_early()
    policy.message_reply_delayed(session, early=True)
    policy.replaced_by(NO_SESSION_POLICY)


# What is counted


class ChosenNamespaces(list[bytes | None]):
    def choose(self, name: bytes | None, events: Sequence[int]) -> None:
        if not self or self[-1] != name:
            self.append(name)


def test_watcher_is_told_when_the_namespace_is_known() -> None:
    session = greeted(policy_of({"one": NO, "two": ""}))
    seen = ChosenNamespaces()
    policy = session.policy
    assert isinstance(policy, NamespaceEvaluator)
    policy.watch(seen.choose)
    codes(session, "EHLO client.test", *message(TAGGED, OTHER), *message(PLAIN), "MAIL FROM:<>", "QUIT")
    assert seen == [None, b"one", b"two", None, b"", None]


def test_namespace_of_a_transaction_is_known_after_the_command_that_ends_it() -> None:
    session = greeted(policy_of({"one": NO, "two": ""}))
    policy = session.policy
    assert isinstance(policy, NamespaceEvaluator)
    codes(session, "EHLO client.test", *message(OTHER)[:2], "RSET")
    assert policy.namespace_of_transaction(ended=True) == b"two"
    assert policy.namespace_of_transaction(ended=False) == b""
    codes(session, *message(OTHER))
    assert policy.namespace_of_transaction(ended=False) == b"two"


ONE = NamespaceEntry("one", 0, 1, 1, 0)
TWO = NamespaceEntry("two", 1, 2, 2, 0)
LISTENER = 90


@pytest.fixture
def accounts() -> Iterator[tuple[NamespaceCounters, NamespaceAccounts, list[int]]]:
    counters, touched = NamespaceCounters(rows=2), list[int]()
    made = NamespaceAccounts(counters, 1, touched.append)
    made.update({b"one": NamespaceScenario(ONE, NO_SCENARIO), b"two": NamespaceScenario(TWO, NO_SCENARIO)})
    yield counters, made, touched


def counted(counters: NamespaceCounters, entry: NamespaceEntry) -> dict[int, int]:
    return {cell: value for cell, value in enumerate(counters.cells(entry)) if value}


def test_what_is_counted_before_a_namespace_is_known_is_counted_for_it(
    accounts: tuple[NamespaceCounters, NamespaceAccounts, list[int]],
) -> None:
    counters, made, touched = accounts
    row = memoryview(bytearray(8 * 100)).cast("Q")
    cells = AccountedCells(row, made, LISTENER)
    cells[3] += 2
    cells.choose(b"one", ())
    cells[3] += 1
    cells.choose(None, ())
    cells[4] += 1
    cells.choose(b"two", ())
    cells.choose(None, ())
    cells[5] += 1
    cells.end()
    assert counted(counters, ONE) == {3: 3, LISTENER: 1}
    assert counted(counters, TWO) == {4: 1, 5: 1, LISTENER: 1}
    assert row[3] == 3 and touched == [0, 1, 1]


def test_events_that_wait_to_be_counted_belong_to_the_namespace_before(
    accounts: tuple[NamespaceCounters, NamespaceAccounts, list[int]],
) -> None:
    counters, made, _ = accounts
    row = memoryview(bytearray(8 * 100)).cast("Q")
    cells = AccountedCells(row, made, LISTENER)
    cells.choose(b"one", ())
    events = [7, 7, 8]
    cells.choose(b"two", events)
    for event in [*events, 7]:
        cells[event] += 1
    assert counted(counters, ONE) == {7: 2, 8: 1, LISTENER: 1}
    assert counted(counters, TWO) == {7: 1, LISTENER: 1}
    assert Counter({7: row[7], 8: row[8]}) == Counter({7: 3, 8: 1})


def test_mail_without_a_namespace_is_counted_for_none(
    accounts: tuple[NamespaceCounters, NamespaceAccounts, list[int]],
) -> None:
    counters, made, _ = accounts
    cells = AccountedCells(memoryview(bytearray(8 * 100)).cast("Q"), made, LISTENER)
    cells[3] += 1
    cells.choose(b"", ())
    cells[3] += 1
    cells.choose(b"gone", ())
    cells[3] += 1
    cells.choose(None, ())
    cells[3] += 1
    cells.end()
    cells.choose(b"one", ())
    made.update({})
    cells.choose(None, ())
    cells[3] += 1
    cells.end()
    assert counted(counters, ONE) == {3: 1, LISTENER: 1}


def test_rows_of_a_namespace_survive_their_process_and_end_with_the_namespace() -> None:
    counters = NamespaceCounters(rows=1)
    counters.writer(ONE, 0).add(5, 2)
    counters.writer(ONE, 0).add(5, 1)
    assert counted(counters, ONE) == {5: 3}
    later = ONE._replace(since=9)
    assert counted(counters, later) == {}
    counters.writer(later, 0).add(6, 1)
    assert (counted(counters, later), counted(counters, ONE)) == ({6: 1}, {})


def test_cells_beyond_the_room_of_a_row_are_not_counted() -> None:
    counters = NamespaceCounters(rows=1)
    row = counters.writer(ONE, 0)
    for cell in range(MAX_COUNTED_CELLS + 1):
        row.add(cell, 1)
    assert sum(counters.cells(ONE)) == MAX_COUNTED_CELLS


# Orders


def directory() -> NamespaceDirectory:
    return NamespaceDirectory(ControlChannel(), NamespaceOrders())


def named(name: str) -> RuntimeOrder:
    return RuntimeOrder(name=name, at=1.0)


def test_the_configuration_has_one_clock_in_all_namespaces_and_an_order_its_own() -> None:
    directory = NamespaceDirectory(control := ControlChannel(), NamespaceOrders())
    loaded = replace(NO_SCENARIO, clock_origin=5.0)
    accounts = NamespaceAccounts(NamespaceCounters(rows=1), 0, lambda place: None)
    scenarios = NamespaceScenarios(directory.orders, loaded, Counters(rows=1), accounts)

    def clocks() -> dict[bytes, float]:
        found = scenarios.read(control.read()[1])
        return {name: one.scenario.clock_origin for name, one in found.items()}

    directory.channel("a").publish(lambda before, number: before)
    tables = {"rule": [{"phase": "NOOP", "reply": "250 2.0.0 OK"}]}
    order = {"name": "outage.toml", "tables": tables, "began": 7.0}
    directory.channel("b").publish(lambda before, number: replace(before, **order))
    assert clocks() == {b"a": 5.0, b"b": 7.0}
    control.publish(lambda before, number: replace(before, windows_began=-3.0))
    assert clocks() == {b"a": -3.0, b"b": 7.0}


def test_namespaces_have_orders_and_budgets_of_their_own() -> None:
    found = directory()
    one, two = found.channel("One"), found.channel("two")
    first = one.publish(lambda before, number: named("first"))
    assert two.publish(lambda before, number: named("second")) == first + 1 == found.control.number
    assert (one.read()[1].name, two.read()[1].name) == ("first", "second")
    rule = OneShotRule(7, 0, 2, {})
    one.set_budget(rule, 2)
    assert (one.remaining(rule), two.remaining(rule)) == (2, 0)
    one.publish(lambda before, number: named(before.name + "!"))
    assert one.read()[1].name == "first!"
    assert found.control.read()[1].changed == "one"
    found.control.publish(lambda before, number: before)
    assert found.control.read()[1].changed == ""
    found.remove("one")
    assert (found.find("one"), one.read()[1].name, two.read()[1].name) == (None, "", "second")


def test_namespace_that_is_made_again_knows_nothing_of_the_one_before() -> None:
    found = directory()
    found.channel("one").publish(lambda before, number: named("first"))
    before = found.find("one")
    found.remove("one")
    found.channel("one").publish(lambda before, number: before)
    after = found.find("ONE")
    assert before is not None and after is not None and after.since > before.since
    assert found.orders.read(after) == RuntimeOrder()


def test_number_of_namespaces_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = directory()
    for number in range(MAX_NAMESPACES):
        found.channel(f"n{number}").publish(lambda before, number: before)
    with pytest.raises(NamespacesFull, match="100 namespaces already"):
        found.channel("one-more").publish(lambda before, number: before)
    monkeypatch.setattr(namespaces, "MIN_UNUSED", 0.0)
    found.channel("one-more").publish(lambda before, number: before)
    names = {entry.name for entry in found.entries()}
    assert len(names) == MAX_NAMESPACES and "one-more" in names and "n0" not in names
    assert found.remove_unused() == []
    monkeypatch.setattr(namespaces, "MAX_UNUSED", 0.0)
    assert len(found.remove_unused()) == MAX_NAMESPACES
    assert found.entries() == ()


def test_orders_that_are_too_large_are_refused_and_change_nothing() -> None:
    found = directory()
    channel = found.channel("one")
    with pytest.raises(ValueError, match="more than"):
        channel.publish(lambda before, number: RuntimeOrder(name="x" * (1 << 20)))
    assert found.entries() == ()
    channel.publish(lambda before, number: before)
    (entry,) = found.entries()
    with pytest.raises(ValueError, match="more than"):
        found.orders.write_notes(entry, b"x" * (1 << 20))


def test_full_directory_is_a_conflict_for_the_operator() -> None:
    assert issubclass(NamespacesFull, OperatorError)


@pytest.mark.parametrize(
    "entry",
    [
        ("one", 0, 1, 1, 2, 0.0),
        ("one", MAX_NAMESPACES, 1, 1, 0, 0.0),
        ("one", 0, -1, 1, 0, 0.0),
        (1, 0, 1, 1, 0, 0.0),
        ("one", 0, 1, 1, 0, -1.0),
    ],
)
def test_directory_that_another_process_has_overwritten_is_not_read(entry: tuple[object, ...]) -> None:
    control = ControlChannel()
    wrong = NamespaceEntry(*entry)  # type: ignore[arg-type]
    control.publish(lambda before, number: RuntimeOrder(namespaces=(wrong,)))
    assert control.read()[1].namespaces == ()


def test_without_the_option_connections_and_sessions_are_those_without_namespaces() -> None:
    """Nothing of namespaces is on the path of mail: no other policy, no other connection, no other cells."""

    async def made(namespace_by: tuple[str, ...]) -> SMTPServer:
        settings = Settings(namespace_by=namespace_by)
        row = memoryview(bytearray(8 * ROW_CELLS)).cast("Q")
        names = None
        if namespace_by:
            accounts = NamespaceAccounts(NamespaceCounters(rows=1), 0, lambda place: None)
            names = ServerNamespaces(namespace_by, b"25", accounts, {})
        return SMTPServer(Listener("127.0.0.1", 25), settings, row, None, None, namespaces=names)

    plain, with_tags = asyncio.run(made(())), asyncio.run(made(("tag",)))
    assert plain._connection_type is Connection
    assert type(plain.engine.policy) is RulePolicy and not plain.engine.policy.phases
    assert isinstance(plain.context.counters, memoryview)
    assert make_recorder(plain.settings, plain.listener, "x", None).namespace_of is None
    assert isinstance(with_tags.engine.policy, NamespacePolicy)
    assert make_recorder(with_tags.settings, with_tags.listener, "x", None).namespace_of is not None
    assert not with_tags.may_refuse
