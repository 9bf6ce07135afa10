"""Limits by conduct: those that grow while they are kept, and those of refused recipients."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from blackhole.rules.conduct import MAX_PERIODS, MAX_REFUSED, GrowingCount, RefusalCount
from blackhole.rules.context import RuleContext
from blackhole.rules.explain import explain
from blackhole.rules.scenario_file import parse_rules
from blackhole.settings import OperatorError
from tests.program import Program, scenario_option
from tests.redis_server import RedisServer
from tests.remote_store import RemoteStore, UnavailableStore
from tests.smtp_client import SMTPClient
from tests.test_limiters import SimulatedListener, say

DAY = 86400.0

WARM_UP = """
[[rule]]
name = "warm-up"
throttle = { recipients = 2, per = "1h", by = "network", grows = 2, every = "1d", to = 10 }
reply = "451 4.7.0 Too much mail from a new address"
"""

UNKNOWN_USERS = """
[[rule]]
name = "reputation"
throttle = { refused = 3, per = "1h", by = "client", share = 0.5 }
reply = "421 4.7.0 Too many unknown users from {client}"

[[rule]]
name = "unknown users"
phase = "RCPT"
recipient = "unknown@*"
reply = "550 5.1.1 No such user"
"""


def accepted(listener: SimulatedListener, at: float, tries: int) -> int:
    """Return how many of some recipients are accepted."""
    return sum(listener.rcpt(at) == "250" for _ in range(tries))


@pytest.mark.pure
def test_limit_grows_after_each_time_in_which_it_was_used_and_kept() -> None:
    listener = SimulatedListener(WARM_UP)
    assert [accepted(listener, at, 2) for at in (0, 3600)] == [2, 2]
    assert [accepted(listener, DAY * day, limit) for day, limit in ((1, 4), (2, 8), (3, 10))] == [4, 8, 10]
    assert accepted(listener, DAY * 3 + 3600, 11) == 10, "the largest limit, exceeded"
    assert accepted(listener, DAY * 4, 10) == 10
    assert listener.rcpt(DAY * 4, client="198.51.100.1") == "250", "another network"


@pytest.mark.pure
def test_limit_does_not_grow_where_it_was_exceeded() -> None:
    listener = SimulatedListener(WARM_UP)
    assert accepted(listener, 0, 3) == 2
    assert accepted(listener, DAY, 2) == 2
    assert accepted(listener, 2 * DAY, 4) == 4, "kept for a day"


@pytest.mark.pure
def test_limit_falls_while_nobody_uses_it() -> None:
    listener = SimulatedListener(WARM_UP)
    assert [accepted(listener, DAY * day, 1) for day in range(4)] == [1, 1, 1, 1]
    assert accepted(listener, DAY * 5, 11) == 8, "four days earn 2 * 2^4, at most 10; one is lost"
    assert accepted(listener, DAY * 40, 3) == 2, "as new"


@pytest.mark.pure
@pytest.mark.parametrize("memory", [None, RemoteStore()], ids=["local", "remote"])
def test_client_with_many_unknown_users_is_sent_away(memory: RemoteStore | None) -> None:
    listener = SimulatedListener(UNKNOWN_USERS, memory=memory)
    session, _ = listener.arrive()
    say(session, "MAIL FROM:<ann@a>")
    names = ("unknown", "bob", "bob", "unknown", "bob", "unknown", "unknown")
    codes = [say(session, f"RCPT TO:<{name}@b>") for name in names]
    assert codes == ["550", "250", "250", "550", "250", "550", "550"], "three, but no more than half"
    assert say(session, "RCPT TO:<bob@b>") == "421"
    assert listener.rcpt(1.0) == "421", "of another connection too"
    assert listener.rcpt(1.0, client="192.0.2.9") == "250"
    assert listener.rcpt(3600.0) == "250", "after an hour"


@pytest.mark.pure
def test_deferred_recipients_and_those_of_other_rules_do_not_count() -> None:
    text = (
        UNKNOWN_USERS.replace("refused = 3", "refused = 1")
        .replace(", share = 0.5", "")
        .replace("421 4.7.0", "550 5.7.1")
    )
    listener = SimulatedListener(
        text
        + "[[rule]]\nphase = 'RCPT'\nrecipient = 'later@*'\nreply = '450 4.2.1 Later'\n"
        + "[[rule]]\nthrottle = { refused = 1, per = '1h', by = 'all' }\nhelo = 'x'\nreply = '450 4.7.1 No'\n"
    )
    assert [listener.rcpt(0, recipient=f"{name}@b") for name in ("later", "later", "bob")] == [
        "450",
        "450",
        "250",
    ]
    assert [listener.rcpt(0, recipient="unknown@b") for _ in range(2)] == ["550", "550"]
    assert listener.rcpt(3599, recipient="bob@b") == "550", "blocked, which does not count again"
    assert listener.rcpt(3600, recipient="bob@b") == "250"


@pytest.mark.pure
def test_reputation_is_unknown_where_the_store_does_not_answer() -> None:
    text = UNKNOWN_USERS.replace(
        '[[rule]]\nname = "unk', "when_unknown = '451 4.3.0 Later'\n[[rule]]\nname = \"unk"
    )
    listener = SimulatedListener(text, memory=UnavailableStore())
    assert listener.rcpt(0) == "451"


@pytest.mark.pure
def test_numbers_of_a_record_have_bounds() -> None:
    record = (0, 0.0, 0.0)
    change = GrowingCount(1, 5, 2.0, 100, 1e-3, 1e9, 5)
    for now in (0.0, 1e8):
        record, blocked = change.spend_growing(record, now)
        assert not blocked
    assert record[0] >> 32 == MAX_PERIODS
    full = (MAX_REFUSED << 26 | MAX_REFUSED, 0.0, 0.0)
    assert RefusalCount(1, 1, 1, 0.0, 9.0).weigh_refusals(full, 1.0)[0][0] == full[0]


@pytest.mark.pure
@pytest.mark.parametrize(
    ("throttle", "error"),
    [
        ("recipients = 1, per = 9, grows = 1, to = 9", "grows: expected a factor above 1, up to 100"),
        ("recipients = 9, per = 9, grows = 2, to = 9", "to: expected a whole number above the limit"),
        ("recipients = 9, per = 9, grows = 2", "to: expected a whole number above the limit"),
        ("recipients = 9, per = 'connection', grows = 2, to = 10", "grows: not with per = connection"),
        ("recipients = 9, per = 9, grows = 2, to = 10, every = 8", "every: expected a time from per to 4095"),
        ("recipients = 9, per = 9, grows = 1.0001, to = 99", "grows: more than 62 times from 9 to 99"),
        ("recipients = 9, per = 9, grows = 2, to = 99, burst = 9", "grows: not with window or burst"),
        ("recipients = 9, per = 9, to = 99", "to: only with grows"),
        ("recipients = 9, per = 9, share = 0.1", "share: only with refused"),
        ("refused = 9, per = 9, burst = 9", "burst: not with refused"),
        ("refused = 0, per = 9", "refused: expected a whole number from 1"),
        ("refused = 9, per = 'connection'", "per: expected a time above 0"),
        ("refused = 9, per = 9, share = 2", "throttle: expected a probability from 0 to 1"),
    ],
)
def test_mistake_in_a_limit_by_conduct_is_reported(throttle: str, error: str) -> None:
    with pytest.raises(OperatorError) as found:
        parse_rules(
            f"[[rule]]\nphase = 'RCPT'\nthrottle = {{ {throttle} }}\nreply = '450 4.7.1 No'\n", "test"
        )
    assert error in str(found.value)


@pytest.mark.pure
@pytest.mark.parametrize(
    ("attempt", "last"),
    [
        (1, "  rule 2 (reputation) does not match: throttle allows 3 refused recipients"),
        (3, "  rule 1 (warm-up) matches"),
        (4, "  rule 2 (reputation) matches"),
    ],
)
def test_explain_assumes_that_earlier_attempts_were_misconduct(attempt: int, last: str) -> None:
    context = RuleContext()
    context.phase, context.recipient, context.attempt = "RCPT", b"bob@b", attempt
    text = (WARM_UP if attempt < 4 else WARM_UP.replace("= 2,", "= 9,")) + UNKNOWN_USERS
    assert last in explain(parse_rules(text, "test"), "accept", context, Random(7))


@pytest.mark.pure
def test_share_of_refused_recipients_needs_rcpt() -> None:
    with pytest.raises(OperatorError, match="share needs RCPT as a phase"):
        parse_rules(UNKNOWN_USERS.replace("throttle", 'phase = "MAIL"\nthrottle'), "test")


def refuse_and_accept(program: Program, unknown: int) -> str:
    """Send some unknown recipients, each in a connection of its own; return the code of a good one."""
    for _ in range(unknown):
        with SMTPClient(program.address) as client:
            client.command_code("MAIL FROM:<ann@a>")
            assert client.command_code("RCPT TO:<unknown@b>") == "550"
    with SMTPClient(program.address) as client:
        client.command_code("MAIL FROM:<ann@a>")
        return client.command_code("RCPT TO:<bob@b>")


def test_conduct_is_known_to_all_workers(tmp_path: Path) -> None:
    text = UNKNOWN_USERS.replace(", share = 0.5", "").replace("refused = 3", "refused = 8")
    with Program(
        "--workers=4",
        scenario_option(tmp_path, text + WARM_UP.replace("= 2,", "= 30,").replace("to = 10", "to = 90")),
    ) as program:
        assert refuse_and_accept(program, 7) == "250"
        assert refuse_and_accept(program, 1) == "421"
        assert program.stop() == 0


def test_conduct_is_known_behind_redis(tmp_path: Path, redis: RedisServer) -> None:
    text = UNKNOWN_USERS.replace(", share = 0.5", "")
    options = [scenario_option(tmp_path, text + WARM_UP), f"--attempt_store={redis.url()}"]
    with Program(*options) as one, Program(*options) as other:
        assert refuse_and_accept(one, 2) == "250"
        assert refuse_and_accept(other, 1) == "421"
        assert [program.stop() for program in (one, other)] == [0, 0]
