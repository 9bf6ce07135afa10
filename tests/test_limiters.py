"""Limiters: greylists and throttles, with a clock that is set by hand."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Hashable
from random import Random

import pytest

from blackhole.rules import explain
from blackhole.rules.attempt_store import (
    NULL_STORE,
    Answer,
    AttemptStore,
    ScopedStore,
    Update,
    count_attempt,
)
from blackhole.rules.context import RuleContext
from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.limiters import MAX_CONNECTION_QUOTAS, Greylist, RateLimit, UseLimit
from blackhole.rules.quota_owners import client_network
from blackhole.rules.scenario import parse_source, parse_sources
from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.session import Session
from blackhole.store.attempts import AttemptTable
from tests.engines import evaluator_of, make_engine
from tests.fuzz.scenarios import DictStore
from tests.remote_store import RemoteStore, UnavailableStore, with_lookups

pytestmark = pytest.mark.pure


class SimulatedListener:
    """A clock that is set by hand, a memory, and a listener with these rules."""

    def __init__(self, text: str, mode: str = "accept", memory: AttemptStore | None = None) -> None:
        self.now = 0.0
        self.memory = memory or AttemptTable(sets=64)
        rules = parse_rules(text, "test.toml") if text else ()
        outside = RuleEnvironment(lambda: self.now, self.memory)
        self.engine = make_engine(hostname="mx.test", mode=mode, rules=rules, environment=outside)

    def arrive(self, client: str = "192.0.2.1") -> tuple[Session, str]:
        session = self.engine.session(client=client)
        return session, with_lookups(session, session.greet()).decode()[:3]

    def rcpt(
        self, at: float, client: str = "192.0.2.1", sender: str = "ann@a", recipient: str = "bob@b"
    ) -> str:
        self.now = at
        session, _ = self.arrive(client)
        say(session, f"MAIL FROM:<{sender}>")
        return say(session, f"RCPT TO:<{recipient}>")


def say(session: Session, line: str) -> str:
    return with_lookups(session, session.receive(line.encode() + b"\r\n")).decode()[:3]


def test_a_number_of_uses_is_shared_by_all_that_have_its_name() -> None:
    table, context = AttemptTable(sets=1), RuleContext()
    first, second = UseLimit(2, "a"), UseLimit(2, "b")
    assert [first.blocks(key, context, table) for key in ("1", "2", "3")] == [True, True, False]
    assert second.blocks("1", context, table) is True
    assert (str(first), first.would_block(context)) == ("applies 2 times", True)
    context.attempt = 3
    assert not first.would_block(context)
    assert first.summary == "", "it limits the rule, and no client"


# Greylists


@pytest.mark.parametrize(
    ("times", "description"),
    [
        ({0: "450", 299: "450", 300: "250", 301: "250", 1e6: "250"}, "the first retry that is late enough"),
        ({0: "450", 300: "250", 301: "250", 1e6: "250"}, "a retry just in time"),
        ({0: "450", 172800: "250", 1e6: "250"}, "the last moment"),
        ({0: "450", 172801: "450", 173100: "450", 173102: "250"}, "too late is anew"),
        ({0: "450", 100: "450", 200: "450", 310: "250"}, "it is the first attempt that counts"),
    ],
)  # fmt: skip
def test_greylist_accepts_a_retry_in_time_and_all_attempts_after_it(
    times: dict[float, str], description: str
) -> None:
    listener = SimulatedListener("", "greylist")
    assert {at: listener.rcpt(at) for at in times} == times, description


def test_greylist_key_is_client_network_sender_and_recipient() -> None:
    listener = SimulatedListener("", "greylist")
    assert listener.rcpt(0) == "450"
    assert listener.rcpt(400, client="192.0.3.1") == "450"
    assert listener.rcpt(400, sender="eve@a") == "450"
    assert listener.rcpt(400, recipient="carol@b") == "450"
    assert listener.rcpt(400, client="192.0.2.77", sender="ANN@a", recipient="Bob@B") == "250"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.200", True),
        ("192.0.2.1", "192.0.3.1", False),
        ("::ffff:192.0.2.1", "192.0.2.9", True),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("no:address", "no:address", True),
        ("", "", True),
    ],
)
def test_client_network_is_a_24_of_ipv4_and_a_64_of_ipv6(one: str, other: str, same: bool) -> None:
    assert (client_network(one) == client_network(other)) is same


def test_greylist_outside_its_window_records_nothing() -> None:
    text = "[[rule]]\ngreylist = true\nwindow = 'w'\n[[window]]\nname = 'w'\nat = 100\nfor = 1000"
    listener = SimulatedListener(text)
    assert [listener.rcpt(at) for at in (0, 100, 350, 401)] == ["250", "450", "450", "250"]


# Throttles


def throttled(what: str, more: str = "") -> SimulatedListener:
    return SimulatedListener(f"[[rule]]\nthrottle = {{ {what} }}\nreply = '450 4.7.1 Slow down'\n{more}")


def test_period_of_a_throttle_begins_with_the_first_command() -> None:
    listener = throttled("recipients = 2, per = 'minute'")
    codes = {at: listener.rcpt(at) for at in (50, 70, 80, 109, 110, 111, 112, 170)}
    assert "".join(code[0] for code in codes.values()) == "22442242"


@pytest.mark.parametrize(
    ("by", "classes"),
    [("client", "2422"), ("sender-domain", "2442"), ("recipient-domain", "2244"), ("all", "2444")],
)
def test_throttle_counts_for_the_client_the_domain_or_all(by: str, classes: str) -> None:
    listener = throttled(f"recipients = 1, per = 60, by = '{by}'")
    codes = [
        listener.rcpt(1),
        listener.rcpt(2, sender="eve@A", recipient="b@c" if by == "recipient-domain" else "b@b"),
        listener.rcpt(3, client="192.0.2.2", recipient="x@B", sender="a@a"),
        listener.rcpt(4, client="192.0.2.3", sender="a@c", recipient="y@c"),
    ]
    assert "".join(code[0] for code in codes) == classes


def test_rules_with_the_same_name_have_their_own_quotas() -> None:
    more = "name = 'limit'\n[[rule]]\nname = 'limit'\nthrottle = { recipients = 4, per = 'hour' }\n"
    listener = throttled("recipients = 2, per = 'minute'", more + "reply = '452 4.5.3 Too many'")
    codes = [listener.rcpt(at) for at in (0, 1, 2, 60, 61, 62, 120)]
    assert codes == ["250", "250", "450", "250", "250", "450", "452"]


@pytest.mark.parametrize(
    ("by", "same", "other"),
    [
        ("network", {"client": "192.0.2.77", "sender": "eve@x"}, {"client": "192.0.3.1"}),
        ("sender", {"client": "192.0.9.1", "sender": "ANN@A"}, {"sender": "eve@a"}),
        ("recipient", {"client": "192.0.9.1", "recipient": "BOB@B"}, {"recipient": "carol@b"}),
        ("pair", {"client": "192.0.9.1", "sender": "Ann@a"}, {"sender": "eve@a"}),
        ("pair", {"client": "192.0.9.1", "recipient": "Bob@b"}, {"recipient": "carol@b"}),
        ("listener", {"client": "192.0.9.1", "sender": "eve@x", "recipient": "y@z"}, None),
        (["client", "recipient-domain"], {"sender": "eve@x", "recipient": "carol@B"}, {"recipient": "bob@c"}),
        (["client", "recipient-domain"], {"recipient": "x@b"}, {"client": "192.0.2.2"}),
    ],
)
def test_throttle_counts_for_each_combination_of_what_it_names(
    by: str | list[str], same: dict[str, str], other: dict[str, str] | None
) -> None:
    listener = throttled(f"recipients = 1, per = 60, by = {by!r}")
    codes = [listener.rcpt(0), listener.rcpt(1, **same)]
    assert codes == ["250", "450"]
    assert other is None or listener.rcpt(2, **other) == "250"


def test_throttle_counts_by_helo() -> None:
    listener = throttled("messages = 1, per = 60, by = 'helo'")
    codes = []
    for name in ("one.test", "two.test", "ONE.test"):
        session, _ = listener.arrive()
        say(session, f"EHLO {name}")
        codes.append(say(session, "MAIL FROM:<ann@a>"))
    assert codes == ["250", "250", "450"]


def test_throttle_counts_by_user() -> None:
    rules = parse_rules(
        "[[rule]]\nthrottle = { messages = 1, per = 60, by = 'user' }\nreply = '450 4.7.1 Slow down'\n",
        "test.toml",
    )
    engine = make_engine(
        rules=rules,
        environment=RuleEnvironment(attempt_store=AttemptTable(sets=4)),
        auth=True,
        auth_plaintext=True,
    )
    codes = []
    for user in (b"ann", b"bob", b"ann"):
        session = engine.session()
        session.receive(b"EHLO one.test\r\nAUTH PLAIN " + b64encode(b"\0" + user + b"\0x") + b"\r\n")
        codes.append(say(session, "MAIL FROM:<ann@a>"))
    assert codes == ["250", "250", "450"]


def test_greylist_counts_for_what_it_names() -> None:
    listener = SimulatedListener("[[rule]]\ngreylist = { by = ['client', 'sender-domain'] }")
    assert listener.rcpt(0) == "450"
    assert listener.rcpt(300, sender="eve@A", recipient="carol@c") == "250"
    assert listener.rcpt(300, client="192.0.2.2") == "450"
    assert listener.rcpt(300, sender="ann@b") == "450"


def test_greylist_that_needs_no_recipient_may_apply_to_mail() -> None:
    listener = SimulatedListener("[[rule]]\nphase = 'MAIL'\ngreylist = { by = ['network', 'sender'] }")
    session, _ = listener.arrive()
    assert say(session, "MAIL FROM:<ann@a>") == "450"
    listener.now = 300
    assert say(session, "MAIL FROM:<ann@a>") == "250"


def test_sliding_window_never_lets_more_than_the_limit_through_in_its_time() -> None:
    listener = throttled("recipients = 3, per = 60, window = 'sliding'")
    accepted = [at for at in range(600) if listener.rcpt(at) == "250"]
    assert accepted[:6] == [0, 1, 2, 60, 61, 63]
    for at in accepted:
        # The window is as exact as one of its fifteen parts.
        assert sum(at <= other < at + 60 - 4 for other in accepted) <= 3


def test_sliding_window_remembers_what_came_at_the_end_of_a_fixed_one() -> None:
    times = (0, 58, 59, 61, 62)
    fixed = throttled("recipients = 3, per = 60")
    assert [fixed.rcpt(at) for at in times] == ["250"] * 5
    sliding = throttled("recipients = 3, per = 60, window = 'sliding'")
    assert [sliding.rcpt(at) for at in times] == ["250", "250", "250", "250", "450"]
    assert [sliding.rcpt(at) for at in (100, 122, 123, 124)] == ["450", "250", "250", "250"]


@pytest.mark.parametrize("limit", [1, 7, 100, 300, 3600, 100_000])
@pytest.mark.parametrize("how", ["window = 'fixed'", "window = 'sliding'", "burst = 1", "burst = 20"])
def test_sender_at_the_rate_of_the_limit_is_never_blocked(limit: int, how: str) -> None:
    listener = throttled(f"recipients = {limit}, per = 60, by = 'all', {how}")
    session, _ = listener.arrive()
    say(session, "MAIL FROM:<ann@a>")
    for number in range(min(4 * limit, 2000)):
        listener.now = 1000 + number * 60 / limit
        assert say(session, "RCPT TO:<bob@b>") == "250"


@pytest.mark.parametrize("limit", [7, 100, 300])
@pytest.mark.parametrize("how", ["window = 'fixed'", "window = 'sliding'", "burst = 5"])
def test_sender_at_twice_the_rate_of_the_limit_has_half_accepted(limit: int, how: str) -> None:
    listener = throttled(f"recipients = {limit}, per = 60, by = 'all', {how}")
    session, _ = listener.arrive()
    say(session, "MAIL FROM:<ann@a>")
    accepted = 0
    for number in range(20 * limit):
        listener.now = number * 30 / limit
        accepted += say(session, "RCPT TO:<bob@b>") == "250"
    assert 10 * limit * 0.98 <= accepted <= 10 * limit * 1.12 + 5


def test_bucket_of_tokens_lets_a_burst_through_and_then_the_rate() -> None:
    listener = throttled("recipients = 60, per = 'minute', burst = 3")
    codes = [listener.rcpt(at) for at in (0, 0, 0, 0, 0.9, 1, 1, 2.5, 3.5, 100, 100, 100, 100)]
    assert "".join(code[0] for code in codes) == "2224424222224"


def test_what_is_larger_than_a_bucket_never_passes() -> None:
    listener = throttled("bytes = '1k', per = 'second', burst = 100", "phase = 'MAIL'")
    session, _ = listener.arrive()
    assert say(session, "MAIL FROM:<ann@a> SIZE=101") == "450"
    listener.now = 100
    assert [say(session, f"MAIL FROM:<ann@a> SIZE={size}") for size in (101, 100, 0)] == ["450", "250", "250"]


def test_record_of_no_octets_takes_no_part_of_a_sliding_window() -> None:
    listener = throttled("bytes = 300, per = 60, window = 'sliding'", "phase = 'MAIL'")
    session, _ = listener.arrive()
    codes = []
    for listener.now, size in ((0, 0), (1, 300), (2, 0), (2, 1), (62, 0), (90, 2), (400, 300)):
        codes.append(say(session, f"MAIL FROM:<ann@a> SIZE={size}"))
    assert codes == ["250", "250", "250", "450", "250", "250", "250"]


def test_connection_holds_one_slot_for_each_owner() -> None:
    listener = throttled("concurrent = 1, by = 'sender-domain'")
    (first, _), (second, _) = listener.arrive(), listener.arrive()
    assert [say(first, f"MAIL FROM:<{name}>") for name in ("ann@a", "bob@A", "ann@b")] == ["250"] * 3
    assert [say(second, f"MAIL FROM:<{name}>") for name in ("ann@a", "ann@b", "ann@c")] == [
        "450",
        "450",
        "250",
    ]
    first.closed()
    assert [say(second, f"MAIL FROM:<{name}>") for name in ("ann@a", "ann@b")] == ["250", "250"]


def test_slot_that_was_refused_by_a_remote_store_is_asked_for_again() -> None:
    memory = RemoteStore()
    listener = SimulatedListener(
        "[[rule]]\nthrottle = { concurrent = 1, by = 'sender' }\nreply = '450 4.7.1 Busy'\n", memory=memory
    )
    (first, _), (second, _) = listener.arrive(), listener.arrive()
    assert [say(one, "MAIL FROM:<ann@a>") for one in (first, second, first)] == ["250", "450", "250"]
    assert evaluator_of(second).context.held_slots == {}
    (key,) = evaluator_of(first).context.held_slots
    memory.table.release(key)
    assert say(second, "MAIL FROM:<ann@a>") == "250"


def test_connection_holds_a_bounded_number_of_slots_of_a_rule() -> None:
    listener = SimulatedListener(
        """
        [[rule]]
        throttle = { concurrent = 1 }
        reply = "421 4.7.0 Full"
        [[rule]]
        throttle = { concurrent = 1, by = "recipient" }
        reply = "450 4.7.1 Busy"
        """,
        memory=DictStore(True),
    )
    session, _ = listener.arrive()
    say(session, "MAIL FROM:<ann@a>")
    for number in range(MAX_CONNECTION_QUOTAS + 9):
        assert say(session, f"RCPT TO:<b{number}@b>") == "250"
    assert len(evaluator_of(session).context.held_slots) == MAX_CONNECTION_QUOTAS
    assert listener.arrive()[1] == "421", "the slot of the connection itself is kept"
    other, _ = listener.arrive("192.0.2.2")
    say(other, "MAIL FROM:<ann@a>")
    assert [say(other, f"RCPT TO:<b{number}@b>") for number in (0, 99)] == ["250", "450"]


def test_slots_of_one_rule_take_no_place_of_another() -> None:
    listener = SimulatedListener(
        """
        [[rule]]
        throttle = { concurrent = 1, by = "recipient" }
        reply = "450 4.7.1 Busy"
        [[rule]]
        throttle = { concurrent = 1, by = "recipient-domain" }
        reply = "450 4.7.1 Busy"
        [[rule]]
        throttle = { concurrent = 1, by = "sender" }
        reply = "450 4.7.1 Busy"
        [[rule]]
        phase = "HELO"
        throttle = { concurrent = 1, by = "helo" }
        reply = "450 4.7.1 Busy"
        """,
        memory=DictStore(True),
    )
    session, _ = listener.arrive()
    say(session, "MAIL FROM:<ann@a>")
    for number in range(MAX_CONNECTION_QUOTAS + 9):
        assert say(session, f"RCPT TO:<b{number}@b>") == "250"
    assert say(session, "MAIL FROM:<eve@a>") == "250"
    assert say(session, "HELO late.test") == "250", "the first slot of a rule, when all places are taken"
    assert evaluator_of(session).context.held_slots.keys() >= {
        b"recipient-domain\x002\x00b",
        b"sender\x003\x00eve@a",
        b"helo\x004\x00late.test",
    }


@pytest.mark.parametrize(
    ("by", "classes"),
    [("client", "24444"), ("all", "24444"), ("sender-domain", "22444"), ("recipient-domain", "24242")],
)
def test_throttle_of_a_connection_counts_by_domain_too(by: str, classes: str) -> None:
    listener = throttled(f"recipients = 1, per = 'connection', by = '{by}'")
    session, _ = listener.arrive()
    codes = []
    for sender, recipient in (("a@a", "b@b"), ("a@b", "c@B"), ("a@A", "b@c"), ("c@b", "d@c"), ("d@a", "d@d")):
        say(session, f"MAIL FROM:<{sender}>")
        codes.append(say(session, f"RCPT TO:<{recipient}>"))
    assert "".join(code[0] for code in codes) == classes
    assert listener.rcpt(0, sender="a@a", recipient="b@b") == "250", "another connection"


def test_connection_remembers_a_bounded_number_of_domains() -> None:
    rules = parse_rules(
        """
        [[rule]]
        throttle = { recipients = 2, per = "connection", by = "recipient-domain" }
        reply = "450 4.7.1 Slow down"
        [[rule]]
        throttle = { recipients = 3000, per = "connection" }
        reply = "450 4.7.1 Slow down"
        """,
        "test.toml",
    )
    session = make_engine(rules=rules).session()
    say(session, "MAIL FROM:<ann@a>")
    say(session, "RCPT TO:<bob@first>")
    for number in range(2 * MAX_CONNECTION_QUOTAS):
        assert say(session, f"RCPT TO:<bob@b{number}>") == "250"
    quotas = evaluator_of(session).context.quota_used
    assert len(quotas) == MAX_CONNECTION_QUOTAS
    assert max(quotas.values()) == 2 * MAX_CONNECTION_QUOTAS + 1, "what is not by domain is not forgotten"


THIRD = """
[[rule]]
phase = "QUIT"
reply = "accept"
[[rule]]
phase = "HELP"
reply = "accept"
[[rule]]
{limit}
reply = "450 4.7.1 unnamed"
[[rule]]
name = "3"
{limit}
reply = "451 4.7.1 named"
"""

TWICE = """
[[rule]]
name = "limit"
{limit}
reply = "450 4.7.1 one"
[[rule]]
name = "limit"
{limit}
reply = "451 4.7.1 other"
"""


@pytest.mark.parametrize("rules", [THIRD, TWICE])
@pytest.mark.parametrize(
    ("limit", "codes"),
    [
        ("throttle = { recipients = 2, per = 'hour' }", ["250", "250", "450", "450"]),
        ("throttle = { recipients = 2, per = 'connection' }", ["250", "250", "450", "450"]),
        ("greylist = { min = 0 }", ["450", "451", "250", "250"]),
    ],
)
def test_no_two_rules_share_what_they_remember(rules: str, limit: str, codes: list[str]) -> None:
    listener = SimulatedListener(rules.replace("{limit}", limit))
    session, _ = listener.arrive()
    say(session, "MAIL FROM:<ann@a>")
    assert [say(session, "RCPT TO:<bob@b>") for _ in codes] == codes


@pytest.mark.parametrize("rules", [THIRD, TWICE])
def test_no_two_rules_share_their_slots(rules: str) -> None:
    listener = SimulatedListener(rules.replace("{limit}", "throttle = { concurrent = 2 }"))
    assert [listener.arrive()[1] for _ in range(3)] == ["220", "220", "450"]


@pytest.mark.parametrize("rules", [THIRD, TWICE])
def test_no_two_rules_share_their_draws(rules: str) -> None:
    listener = SimulatedListener(rules.replace("{limit}", "phase = 'RCPT'\nchance = 0.5"))
    codes = {listener.rcpt(0, recipient=f"bob{number}@b") for number in range(50)}
    assert codes == {"250", "450", "451"}


def test_rules_of_the_same_name_in_two_files_share_nothing() -> None:
    text = "[[rule]]\nname = 'limit'\nphase = 'RCPT'\nreply = '450 4.7.1 No'\n"
    rules = parse_sources([parse_source("one.toml", text + text), parse_source("two.toml", text)])
    assert len({rule.key for rule in rules}) == len(rules)


def test_greylist_of_a_mode_and_a_rule_of_its_name_share_nothing() -> None:
    listener = SimulatedListener("[[rule]]\nname = 'greylist'\ngreylist = { min = '1h' }", "greylist")
    assert [listener.rcpt(at) for at in (0, 3600, 3900)] == ["450", "450", "250"]


def test_throttle_at_mail_counts_the_declared_size() -> None:
    listener = throttled("bytes = '1k', per = 'hour'", "phase = 'MAIL'")
    session, _ = listener.arrive()
    codes = [say(session, f"MAIL FROM:<ann@a> SIZE={size}") for size in (1000, 24, 1, 0, 2000)]
    assert codes == ["250", "250", "450", "250", "450"]


def test_connection_holds_a_slot_until_it_closes() -> None:
    listener = throttled("concurrent = 2")
    _, one = listener.arrive()
    second, two = listener.arrive()
    assert (one, two, listener.arrive()[1]) == ("220", "220", "450")
    assert listener.arrive("192.0.2.2")[1] == "220"
    second.secured()
    second.closed()
    assert [listener.arrive()[1] for _ in range(2)] == ["220", "450"]


def test_quota_of_a_connection_continues_after_starttls() -> None:
    listener = throttled("messages = 1, per = 'connection'")
    session, _ = listener.arrive()
    assert say(session, "MAIL FROM:<ann@a>") == "250"
    session.secured()
    assert say(session, "MAIL FROM:<ann@a>") == "450"


class CountingTable(AttemptTable):
    """Keeps in mind what it was asked to count."""

    def __init__(self) -> None:
        super().__init__(sets=4)
        self.keys: list[bytes] = []

    def update(self, key: Hashable, now: float, change: Update[Answer]) -> Answer:
        assert isinstance(key, bytes)
        self.keys.append(key)
        return super().update(key, now, change)


@pytest.mark.parametrize(
    ("conditions", "counted"),
    [
        ("recipient = 'carl@*'\nattempt = 2", ["carl@b", "carl@c"]),
        ("recipient = 'carl@*'\nsender = 'ann@*'\nchance = 0.5", ["carl@b", "carl@c"]),
        ("recipient = 'carl@*'\nsender = 'eve@*'\nattempt = 2", []),
        ("recipient = 'carl@*'\nclient = '10.0.0.0/8'\nattempt = 2", []),
        ("recipient = 'carl@*'\nhelo = 'other'\nattempt = 2", ["carl@b", "carl@c"]),
        ("attempt = 2", ["bob@b", "carl@b", "carl@c"]),
        ("recipient = 'carl@*'", []),
    ],
)
def test_attempts_are_counted_only_for_envelopes_that_a_rule_can_match(
    conditions: str, counted: list[str]
) -> None:
    memory = CountingTable()
    listener = SimulatedListener(
        f"seed = 7\n[[rule]]\nphase = 'RCPT'\n{conditions}\nreply = '450 4.2.1 Later'\n", memory=memory
    )
    session, _ = listener.arrive()
    for line in ("EHLO me", "MAIL FROM:<ann@a>", "RCPT TO:<bob@b>", "RCPT TO:<carl@b>", "RCPT TO:<carl@c>"):
        say(session, line)
    assert [key.rpartition(b"\0")[2].decode() for key in memory.keys] == counted


def test_attempts_are_not_counted_for_chances_without_a_seed() -> None:
    memory = CountingTable()
    listener = SimulatedListener(
        "[[rule]]\nphase = 'RCPT'\nchance = 0.5\nreply = ['450 4.2.1 Later', '451 4.2.1 Later']\n",
        memory=memory,
    )
    session, _ = listener.arrive()
    heard = {say(session, f"RCPT TO:<{number}@b>") for number in range(64)}
    assert heard == {"250", "450", "451"}
    assert memory.keys == []


def test_scopes_of_a_store_do_not_share_slots() -> None:
    store = AttemptTable(sets=64)
    first, second = ScopedStore(store, b"1"), ScopedStore(store, b"2")
    assert [first.refuse_or_acquire(b"key", 1) for _ in range(2)] == [False, True]
    assert second.refuse_or_acquire(b"key", 1) is False
    first.release(b"key")
    assert second.refuse_or_acquire(b"key", 1) is True
    assert first.refuse_or_acquire(b"key", 1) is False


def test_null_store_has_no_records() -> None:
    assert [NULL_STORE.update(b"x", 5.0, count_attempt) for _ in range(2)] == [1, 1]
    assert NULL_STORE.refuse_or_acquire(b"x", 0) and not NULL_STORE.refuse_or_acquire(b"x", 1)
    NULL_STORE.release(b"x")
    context = RuleContext()
    assert Greylist(0, 1).blocks("x", context, NULL_STORE)
    assert not RateLimit("messages", 1, 60, ("all",)).blocks("x", context, NULL_STORE)


# Where nobody knows

UNSURE = {
    "greylist = true": "RCPT",
    "throttle = { recipients = 5, per = 'hour' }\nreply = '450 4.7.1 Slow down'": "RCPT",
    "throttle = { concurrent = 5 }\nreply = '421 4.7.0 Full'": "CONNECT",
    "phase = 'RCPT'\nattempt = 1\nreply = '450 4.2.1 Later'": "RCPT",
    "phase = 'RCPT'\nattempt = '> 1'\ngreylist = true": "RCPT",
}
"""Rules that ask the memory, and where."""

BEHIND = "\n[[rule]]\nphase = '{}'\nreply = '552 5.2.2 Behind'\n"


def first(listener: SimulatedListener) -> str:
    """The code of the first refusal."""
    session, greeting = listener.arrive()
    if greeting != "220":
        return greeting
    say(session, "MAIL FROM:<ann@a>")
    return say(session, "RCPT TO:<bob@b>")


@pytest.mark.parametrize(
    "memory", [lambda: RemoteStore(False), UnavailableStore], ids=["no answer", "known to be gone"]
)
@pytest.mark.parametrize("rule", UNSURE)
def test_rule_has_its_own_reply_when_the_store_does_not_answer(
    rule: str, memory: Callable[[], AttemptStore]
) -> None:
    text, behind = f"[[rule]]\n{rule}\n", BEHIND.format(UNSURE[rule])
    assert first(SimulatedListener(text, memory=memory())) == "250"
    assert first(SimulatedListener(text + "when_unknown = 'accept'\n" + behind, memory=memory())) == "552"
    assert (
        first(SimulatedListener(text + "when_unknown = '451 4.3.0 Who knows'\n" + behind, memory=memory()))
        == "451"
    )


def test_draws_are_those_of_the_first_attempt_when_the_store_does_not_answer() -> None:
    text = "seed = 3\n[[rule]]\nphase = 'RCPT'\nchance = 0.5\nreply = '450 4.2.1 Later'\n"
    names = [f"r{number}@b" for number in range(40)]
    known, unknown, asked = (
        [listener.rcpt(0, recipient=name) for name in names]
        for listener in (
            SimulatedListener(text),
            SimulatedListener(text, memory=UnavailableStore()),
            SimulatedListener(text, memory=RemoteStore(False)),
        )
    )
    assert known == unknown == asked
    assert set(known) == {"250", "450"}


def test_explain_says_what_a_rule_does_when_the_store_does_not_answer() -> None:
    rules = parse_rules(
        "[[rule]]\nphase = 'RCPT'\nattempt = 2\nsender = 'ann@*'\ngreylist = true\n"
        "when_unknown = '451 4.3.0 Who knows'\n[[rule]]\ngreylist = true\nwhen_unknown = 'accept'\n",
        "test.toml",
    )
    for told, ends in (
        (
            {"sender": "ann@a", "rcpt": "b@b"},
            ["is not 2; if the attempt store does not answer: 451 4.3.0 Who knows", "matches"],
        ),
        ({"sender": "eve@a", "rcpt": "b@b"}, ["sender is not ann@*", "matches"]),
        ({"sender": "ann@a"}, ["only at RCPT", "only at RCPT"]),
    ):
        lines = list(explain.explain(rules, "accept", explain.read_context(told, "127.0.0.1:25"), Random(7)))
        assert [line.endswith(end) for line, end in zip(lines[1:3], ends, strict=True)] == [True, True], lines


def test_pending_slot_is_released_when_the_client_leaves() -> None:
    """A remote store may have acquired the slot without an answer having arrived."""
    memory = RemoteStore()
    listener = SimulatedListener(
        "[[rule]]\nthrottle = { concurrent = 1 }\nreply = '421 4.7.0 Full'\n", memory=memory
    )
    session = listener.engine.session(client="192.0.2.1")
    assert session.greet() == b""
    later = session.pending_lookup
    session.closed()
    assert memory.released == [later]
