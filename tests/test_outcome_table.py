"""The table of outcomes: accepted messages, and the same verdicts as with a record of every message."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from blackhole.metrics.layout import OUTCOMES_START, VIOLATIONS_START
from blackhole.rules import retry_tracker
from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.outcomes import ACCEPTED, EVENTS
from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.replies import NextAction
from blackhole.smtp.session import Session
from blackhole.smtp.violations import VIOLATIONS
from blackhole.store.attempts import SLOTS_PER_SET, AttemptTable
from blackhole.store.outcome_table import OutcomeTable
from tests.engines import make_engine

pytestmark = pytest.mark.pure


def test_accepted_message_is_known_until_it_is_removed() -> None:
    table = OutcomeTable(sets=4)
    assert [table.add_accepted(5), table.add_accepted(5), table.add_accepted(9)] == [True, False, True]
    assert [table.remove_accepted(5), table.remove_accepted(5)] == [True, False]
    assert [table.add_accepted(9), table.add_accepted(5)] == [False, True]
    assert not table.has_records()


def test_new_hash_takes_the_place_of_the_oldest_of_its_set() -> None:
    table = OutcomeTable(sets=1)
    for key_hash in range(1, SLOTS_PER_SET + 2):
        assert table.add_accepted(key_hash)
    assert not table.remove_accepted(1)
    assert all(table.remove_accepted(key_hash) for key_hash in range(2, SLOTS_PER_SET + 2))


def test_sets_do_not_overlap() -> None:
    table, hashes = OutcomeTable(sets=64), [2**64 - 1 - number for number in range(4 * SLOTS_PER_SET)]
    assert all(map(table.add_accepted, hashes))
    assert all(map(table.remove_accepted, hashes))


def test_processes_of_one_fork_share_accepted_messages_and_whether_there_are_records() -> None:
    table = OutcomeTable(sets=4)
    child = os.fork()
    if not child:
        table.add_accepted(5)
        table.update_hash(6, 1.0, lambda record, now: ((1, now, now), None))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert table.remove_accepted(5)
    assert table.has_records()


QUEUE_ID = re.compile(rb"queued as \w+")


class RecordingStore(AttemptTable):
    """An OutcomeStore that keeps a record of every message, the accepted ones too."""

    def has_records(self) -> bool:
        return True

    def add_accepted(self, key_hash: int) -> bool:
        assert not self.contains(key_hash)
        self.update_hash(key_hash, 0.0, lambda record, now: ((ACCEPTED, now, now), None))
        return True

    def remove_accepted(self, key_hash: int) -> bool:
        return False


RULES = (
    "[[rule]]\nphase = 'RCPT'\nrecipient = 'full@*'\nreply = '552 5.2.2 Full'\n",
    "[[rule]]\nphase = 'RCPT'\nattempt = 1\nrecipient = '*@later'\nreply = '450 4.2.1 Later'\n",
    "[[rule]]\nphase = 'RCPT'\nchance = 0.1\nreply = '451 4.7.1 Later'\n",
    "[[rule]]\nphase = 'MAIL'\nchance = 0.1\nreply = ['450 4.7.1 Later', '550 5.7.1 No']\n",
    "[[rule]]\nphase = 'DATA'\nchance = 0.1\nreply = '450 4.7.1 Later'\n",
    "[[rule]]\nphase = '.'\nchance = 0.2\nreply = ['450 4.7.1 Later', '550 5.7.1 No']\n",
    "[[rule]]\nphase = '.'\nchance = 0.2\ndelay = 1\n",
    "[[rule]]\nphase = '.'\nchance = 0.2\nthen = 'close-before-reply'\n",
    "[[rule]]\nphase = '.'\nchance = 0.1\nthen = 'close-after-reply'\n",
    "[[rule]]\nphase = '.'\nchance = 0.1\nthen = 'half-reply'\n",
    "[[rule]]\nphase = '.'\nrecipient = 'carol@*'\nreply = '450 4.2.1 Later'\n",
    "[[rule]]\nphase = '.'\nheader = 'Subject: odd'\nreply = '550 5.7.1 Odd'\n",
)


class Client:
    """Random sessions with a server that keeps outcomes in a store. What happened is counted by number."""

    def __init__(self, rules: str, fast_path: bool, store: OutcomeTable | RecordingStore) -> None:
        self.now = 0.0
        environment = RuleEnvironment(lambda: self.now, AttemptTable(), store, lambda: self.now)
        made = parse_rules(rules, "test.toml")
        self.engine = make_engine(made, environment=environment, hostname="mx", fast_path=fast_path)
        self.counts: Counter[int] = Counter()
        self.replies: list[bytes] = []

    def say(self, session: Session, *chunks: bytes, patient: bool = True) -> bytes:
        """Send chunks, and wait for all replies; an impatient client sends the next one before that."""
        said = b""
        for chunk in chunks:
            if session.next_action in (NextAction.READ, NextAction.READ_BODY):
                said = session.receive(chunk)
            while patient and session.next_action is NextAction.SLEEP:
                self.now += session.wait
                said += session.resume()
        self.replies.append(QUEUE_ID.sub(b"queued", said))
        return said

    def run(self, random: Random) -> None:
        """One connection with some messages."""
        session = self.engine.session(client=random.choice(("192.0.2.1", "198.51.100.1")))
        session.policy.set_local_address(lambda: "192.0.2.25:25")
        session.greet()
        self.say(session, b"EHLO client.example\r\n")
        for _ in range(random.randint(1, 3)):
            self.now += random.choice((0.0, 0.0, 0.1, 1.0, 400.0))
            names = random.sample(("bob@b", "full@b", "carol@later", "Eve@b"), random.randint(1, 2))
            commands = [b"MAIL FROM:<ann@a>\r\n", *(b"RCPT TO:<%b>\r\n" % name.encode() for name in names)]
            subject = random.choice((b"odd", b"usual"))
            field = b"Message-%b: <%d@c>\r\n" % (random.choice((b"ID", b"Id", b"id")), random.randrange(4))
            if not random.randrange(5):
                field = b""
            body = field + b"Subject: " + subject + b"\r\n\r\nHello\r\n.\r\n"
            if random.randrange(3):
                self.say(session, *commands)
                said = self.say(session, b"DATA\r\n")
            else:
                said = self.say(session, b"".join(commands) + b"DATA\r\n")
            if b"354" in said and random.randrange(9):
                self.say(session, body, patient=bool(random.randrange(5)))
            elif random.randrange(2):
                self.say(session, b"RSET\r\n")
        if random.randrange(3):
            self.say(session, b"QUIT\r\n")
        session.closed()
        self.counts.update(number for number in session.counted_events if number >= VIOLATIONS_START)


def compare(seed: int) -> Counter[int]:
    """Compare a server with one that keeps a record of every message and takes the general path, so that
    nothing is left out of what rules and the tracker see. Return what the first one counted."""
    random = Random(seed)
    rules = "".join(random.sample(RULES, random.randint(1, 5)))
    clients = [Client(rules, True, OutcomeTable()), Client(rules, False, RecordingStore())]
    for number in range(120):
        for client in clients:
            client.run(Random(f"{seed} {number}"))
        assert clients[0].replies == clients[1].replies
        assert clients[0].counts == clients[1].counts
    return clients[0].counts


def test_verdicts_are_those_of_a_server_that_keeps_a_record_of_every_message() -> None:
    counts: Counter[int] = Counter()
    for seed in range(60):
        counts += compare(seed)
    seen = {EVENTS[number - OUTCOMES_START].name for number in counts if number >= OUTCOMES_START}
    assert seen >= {event.name for event in EVENTS if "retry_" not in event.name}
    accused = {rule.name for number, rule in enumerate(VIOLATIONS, VIOLATIONS_START) if number in counts}
    assert accused >= {"duplicate", "retried-5xx", "retried-at-once"}


def forget_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that may not have read the reply is blamed."""
    monkeypatch.setattr(OutcomeTable, "remove_accepted", lambda self, key_hash: False)


def forget_acceptance(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accepted message that comes again and is refused was never accepted."""
    monkeypatch.setattr(
        retry_tracker, "update_accepted_message", lambda change, record, now: change(record, now)
    )


def never_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of an envelope is forgotten when its message is accepted."""
    monkeypatch.setattr(OutcomeTable, "contains", lambda self, key_hash: False)


def no_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """No accepted message is known."""
    monkeypatch.setattr(OutcomeTable, "add_accepted", lambda self, key_hash: True)


def no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are not looked for."""
    monkeypatch.setattr(OutcomeTable, "has_records", lambda self: False)


@pytest.mark.parametrize(
    "mutation", [forget_nothing, forget_acceptance, never_look, no_duplicates, no_records]
)
def test_comparison_notices(
    mutation: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutation(monkeypatch)
    with pytest.raises(AssertionError):
        for seed in range(60):
            compare(seed)
