"""Rules that remember: greylists and throttles, by themselves, and over all workers of the real program."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import pytest
from elsewhere import Elsewhere, Silence, fetched
from engines import make_engine
from program import Program, descriptors, wait_for

from blackhole.rules import explain
from blackhole.rules.attempt_store import NULL_STORE, Answer, AttemptStore, Update, count_attempt
from blackhole.rules.context import RuleContext
from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.limiters import Greylist, RateLimit, client_network
from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.session import Session
from blackhole.store.attempts import AttemptTable
from tests.smtp_client import SMTPClient


class World:
    """A clock that is set by hand, a memory, and a listener with these rules."""

    def __init__(self, text: str, mode: str = "accept", memory: AttemptStore | None = None) -> None:
        self.now = 0.0
        self.memory = memory or AttemptTable(sets=64)
        rules = parse_rules(text, "test.toml") if text else ()
        outside = RuleEnvironment(lambda: self.now, self.memory)
        self.engine = make_engine(hostname="mx.test", mode=mode, rules=rules, environment=outside)

    def arrive(self, client: str = "192.0.2.1") -> tuple[Session, str]:
        session = self.engine.session(client=client)
        return session, fetched(session, session.greet()).decode()[:3]

    def rcpt(
        self, at: float, client: str = "192.0.2.1", sender: str = "ann@a", recipient: str = "bob@b"
    ) -> str:
        self.now = at
        session, _ = self.arrive(client)
        say(session, f"MAIL FROM:<{sender}>")
        return say(session, f"RCPT TO:<{recipient}>")


def say(session: Session, line: str) -> str:
    return fetched(session, session.receive(line.encode() + b"\r\n")).decode()[:3]


# Greylists


@pytest.mark.parametrize(
    ("times", "heard"),
    [
        ({0: "450", 299: "450", 300: "250", 301: "250", 1e6: "250"}, "the first retry that is late enough"),
        ({0: "450", 300: "250", 301: "250", 1e6: "250"}, "a retry just in time"),
        ({0: "450", 172800: "250", 1e6: "250"}, "the last moment"),
        ({0: "450", 172801: "450", 173100: "450", 173102: "250"}, "too late is anew"),
        ({0: "450", 100: "450", 200: "450", 310: "250"}, "it is the first attempt that counts"),
    ],
)  # fmt: skip
def test_who_waits_is_let_in(times: dict[float, str], heard: str) -> None:
    world = World("", "greylist")
    assert {at: world.rcpt(at) for at in times} == times, heard


def test_a_triplet_is_a_network_a_sender_and_a_recipient() -> None:
    world = World("", "greylist")
    assert world.rcpt(0) == "450"
    assert world.rcpt(400, client="192.0.3.1") == "450"
    assert world.rcpt(400, sender="eve@a") == "450"
    assert world.rcpt(400, recipient="carol@b") == "450"
    assert world.rcpt(400, client="192.0.2.77", sender="ANN@a", recipient="Bob@B") == "250"


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
def test_neighbours(one: str, other: str, same: bool) -> None:
    assert (client_network(one) == client_network(other)) is same


def test_a_window_or_a_chance_that_is_not_given_remembers_nothing() -> None:
    text = "[[rule]]\ngreylist = true\nwindow = 'w'\n[[window]]\nname = 'w'\nat = 100\nfor = 1000"
    world = World(text)
    assert [world.rcpt(at) for at in (0, 100, 350, 401)] == ["250", "450", "450", "250"]


# Throttles


def throttled(what: str, more: str = "") -> World:
    return World(f"[[rule]]\nthrottle = {{ {what} }}\nreply = '450 4.7.1 Slow down'\n{more}")


def test_a_period_begins_with_the_first() -> None:
    world = throttled("recipients = 2, per = 'minute'")
    heard = {at: world.rcpt(at) for at in (50, 70, 80, 109, 110, 111, 112, 170)}
    assert "".join(code[0] for code in heard.values()) == "22442242"


@pytest.mark.parametrize(
    ("by", "heard"),
    [("client", "2422"), ("sender-domain", "2442"), ("recipient-domain", "2244"), ("all", "2444")],
)
def test_whose_quota_it_is(by: str, heard: str) -> None:
    world = throttled(f"recipients = 1, per = 60, by = '{by}'")
    said = [
        world.rcpt(1),
        world.rcpt(2, sender="eve@A", recipient="b@c" if by == "recipient-domain" else "b@b"),
        world.rcpt(3, client="192.0.2.2", recipient="x@B", sender="a@a"),
        world.rcpt(4, client="192.0.2.3", sender="a@c", recipient="y@c"),
    ]
    assert "".join(code[0] for code in said) == heard


def test_rules_of_one_name_have_quotas_of_their_own() -> None:
    more = "name = 'limit'\n[[rule]]\nname = 'limit'\nthrottle = { recipients = 4, per = 'hour' }\n"
    world = throttled("recipients = 2, per = 'minute'", more + "reply = '452 4.5.3 Too many'")
    heard = [world.rcpt(at) for at in (0, 1, 2, 60, 61, 62, 120)]
    assert heard == ["250", "250", "450", "250", "250", "450", "452"]


def test_octets_are_counted_as_they_are_declared() -> None:
    world = throttled("bytes = '1k', per = 'hour'", "phase = 'MAIL'")
    session, _ = world.arrive()
    heard = [say(session, f"MAIL FROM:<ann@a> SIZE={size}") for size in (1000, 24, 1, 0, 2000)]
    assert heard == ["250", "250", "450", "250", "450"]


def test_who_is_there_takes_up_room_until_he_leaves() -> None:
    world = throttled("concurrent = 2")
    _, one = world.arrive()
    second, two = world.arrive()
    assert (one, two, world.arrive()[1]) == ("220", "220", "450")
    assert world.arrive("192.0.2.2")[1] == "220"
    second.secured()
    second.closed()
    assert [world.arrive()[1] for _ in range(2)] == ["220", "450"]


def test_tls_does_not_make_a_new_connection() -> None:
    world = throttled("messages = 1, per = 'connection'")
    session, _ = world.arrive()
    assert say(session, "MAIL FROM:<ann@a>") == "250"
    session.secured()
    assert say(session, "MAIL FROM:<ann@a>") == "450"


class Tally(AttemptTable):
    """Keeps in mind what it was asked to count."""

    def __init__(self) -> None:
        super().__init__(sets=4)
        self.keys: list[bytes] = []

    def update(self, key: Hashable, now: float, change: Update[Answer], alone: bool = False) -> Answer:
        assert isinstance(key, bytes)
        self.keys.append(key)
        return super().update(key, now, change, alone)


@pytest.mark.parametrize(
    ("conditions", "tried"),
    [
        ("recipient = 'carl@*'\nattempt = 2", ["carl@b", "carl@c"]),
        ("recipient = 'carl@*'\nsender = 'ann@*'\nchance = 0.5", ["carl@b", "carl@c"]),
        ("recipient = 'carl@*'\nsender = 'eve@*'\nattempt = 2", []),
        ("recipient = 'carl@*'\nclient = '10.0.0.0/8'\nattempt = 2", []),
        ("recipient = 'carl@*'\nhelo = 'other'\nattempt = 2", ["bob@b", "carl@b", "carl@c"]),
        ("attempt = 2", ["bob@b", "carl@b", "carl@c"]),
        ("recipient = 'carl@*'", []),
    ],
)
def test_only_what_a_rule_may_be_for_is_counted(conditions: str, tried: list[str]) -> None:
    memory = Tally()
    world = World(f"[[rule]]\nphase = 'RCPT'\n{conditions}\nreply = '450 4.2.1 Later'\n", memory=memory)
    session, _ = world.arrive()
    for line in ("EHLO me", "MAIL FROM:<ann@a>", "RCPT TO:<bob@b>", "RCPT TO:<carl@b>", "RCPT TO:<carl@c>"):
        say(session, line)
    assert [key.rpartition(b"\0")[2].decode() for key in memory.keys] == tried


def test_without_a_memory_everything_is_new() -> None:
    assert [NULL_STORE.update(b"x", 5.0, count_attempt) for _ in range(2)] == [1, 1]
    assert NULL_STORE.refuse_or_acquire(b"x", 0) and not NULL_STORE.refuse_or_acquire(b"x", 1)
    NULL_STORE.release(b"x")
    case = RuleContext()
    assert Greylist(0, 1).blocks("x", case, NULL_STORE)
    assert not RateLimit("messages", 1, 60, "all").blocks("x", case, NULL_STORE)


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


def first(world: World) -> str:
    """The code of the first refusal."""
    session, greeting = world.arrive()
    if greeting != "220":
        return greeting
    say(session, "MAIL FROM:<ann@a>")
    return say(session, "RCPT TO:<bob@b>")


@pytest.mark.parametrize("memory", [lambda: Elsewhere(False), Silence], ids=["no answer", "known to be gone"])
@pytest.mark.parametrize("rule", UNSURE)
def test_where_nobody_knows_a_rule_has_its_own_answer(rule: str, memory: Callable[[], AttemptStore]) -> None:
    text, behind = f"[[rule]]\n{rule}\n", BEHIND.format(UNSURE[rule])
    assert first(World(text, memory=memory())) == "250"
    assert first(World(text + "when_unknown = 'accept'\n" + behind, memory=memory())) == "552"
    assert first(World(text + "when_unknown = '451 4.3.0 Who knows'\n" + behind, memory=memory())) == "451"


def test_where_nobody_knows_draws_are_those_of_the_first_attempt() -> None:
    text = "seed = 3\n[[rule]]\nphase = 'RCPT'\nchance = 0.5\nreply = '450 4.2.1 Later'\n"
    names = [f"r{number}@b" for number in range(40)]
    known, unknown, asked = (
        [world.rcpt(0, recipient=name) for name in names]
        for world in (World(text), World(text, memory=Silence()), World(text, memory=Elsewhere(False)))
    )
    assert known == unknown == asked
    assert set(known) == {"250", "450"}


def test_what_nobody_knows_is_told_by_explain() -> None:
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


def test_who_may_have_been_let_in_leaves_in_any_case() -> None:
    """A memory elsewhere may hear too late of who came, or of who did not stay for its answer."""
    memory = Elsewhere()
    world = World("[[rule]]\nthrottle = { concurrent = 1 }\nreply = '421 4.7.0 Full'\n", memory=memory)
    session = world.engine.session(client="192.0.2.1")
    assert session.greet() == b""
    later = session.pending_lookup
    session.closed()
    assert memory.left == [later]


# The real program, with four workers

ATTEMPTS = "[[rule]]\nphase = 'RCPT'\nattempt = '<= 6'\nreply = '450 4.2.1 Later'\n"


MEMORY = "/memfd:blackhole attempts (deleted)"


@contextmanager
def crowd(program: Program, count: int) -> Iterator[list[SMTPClient]]:
    """So many connections at once, over all workers."""
    with ExitStack() as stack:
        yield [stack.enter_context(SMTPClient(program.address)) for _ in range(count)]


def crew(tmp_path: Path, text: str, *more: str) -> Program:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    return Program("--workers=4", f"--scenario={file}", *more)


def attempt(program: Program) -> str:
    with SMTPClient(program.address) as client:
        client.command_code("MAIL FROM:<ann@a>")
        return client.command_code("RCPT TO:<bob@b>")


def reload(program: Program) -> None:
    before = program.output().count("reloaded:")
    program.process.send_signal(signal.SIGHUP)
    wait_for(lambda: program.output().count("reloaded:") > before, "the reload")
    wait_for(lambda: len(program.workers()) == 4, "the old workers have left")


def test_all_workers_count_attempts_together(tmp_path: Path) -> None:
    with crew(tmp_path, ATTEMPTS) as program:
        with crowd(program, 12) as clients:
            for client in clients:
                client.command_code("MAIL FROM:<ann@a>")
            heard = [client.command_code("RCPT TO:<bob@b>") for client in clients]
        assert heard == ["450"] * 6 + ["250"] * 6
        assert program.stop() == 0


def test_a_reload_forgets_nothing_and_may_bring_the_first_rule(tmp_path: Path) -> None:
    """Without rules there is no memory; what the first reload made lives on over the second."""
    file = tmp_path / "rules.toml"
    file.write_text("[[rule]]\nphase = 'RCPT'\nreply = '250 2.1.5 Yes'\n")
    with Program("--workers=4", f"--scenario={file}") as program:
        assert attempt(program) == "250"
        assert MEMORY not in descriptors(program.pid)
        heard = []
        for text in (ATTEMPTS, ATTEMPTS + "# the same again\n"):
            file.write_text(text)
            reload(program)
            heard += [attempt(program) for _ in range(5)]
        assert heard == ["450"] * 6 + ["250"] * 4
        # One for the rules, and one for what comes again.
        assert descriptors(program.pid).count(MEMORY) == 2
        assert program.stop() == 0


def test_a_quota_is_that_of_all_workers(tmp_path: Path) -> None:
    """Sixteen clients that ask as fast as they can: not one too many gets through."""
    text = "[[rule]]\nthrottle = { recipients = 500, per = 'hour' }\nreply = '452 4.5.3 Slow down'\n"
    with crew(tmp_path, text) as program:
        with crowd(program, 16) as clients:
            for client in clients:
                client.command_code("MAIL FROM:<ann@a>")
            for client in clients:
                client.socket.sendall(b"".join(b"RCPT TO:<%d@b>\r\n" % number for number in range(60)))
            heard = Counter(client.read_reply()[:3] for client in clients for _ in range(60))
        assert heard == {"250": 500, "452": 460}
        assert program.stop() == 0


def test_a_rate_is_that_of_all_workers(tmp_path: Path) -> None:
    """Clients that never rest, over several periods: each lets through as many as it may."""
    text = "[[rule]]\nthrottle = { recipients = 100, per = '500ms' }\nreply = '452 4.5.3 Slow down'\n"
    with crew(tmp_path, text) as program:
        with crowd(program, 8) as clients:
            for client in clients:
                client.command_code("MAIL FROM:<ann@a>")
            accepted, began = 0, time.monotonic()
            while time.monotonic() < began + 2.2:
                for client in clients:
                    client.socket.sendall(b"RCPT TO:<bob@b>\r\n" * 20)
                accepted += sum(client.read_reply()[:3] == "250" for client in clients for _ in range(20))
            periods = (time.monotonic() - began) / 0.5
        # The last period may have begun just now; a busy machine may have slept over another.
        assert 100 * (periods - 2) <= accepted <= 100 * (periods + 1)
        assert program.stop() == 0


def test_rooms_are_those_of_all_workers_and_a_killed_one_leaves(tmp_path: Path) -> None:
    text = "[[rule]]\nthrottle = { concurrent = 8 }\nreply = '421 4.7.0 Too many'\n"
    with crew(tmp_path, text) as program:

        def next_one() -> bool:
            with SMTPClient(program.address) as client:
                return client.greeting[:3] == "220"

        def room() -> bool:
            with crowd(program, 9) as clients:
                return Counter(client.greeting[:3] for client in clients) == {"220": 8, "421": 1}

        with crowd(program, 10) as clients:
            assert Counter(client.greeting[:3] for client in clients) == {"220": 8, "421": 2}
            assert not next_one()
            clients[0].command_code("QUIT")
            wait_for(next_one, "there is room again")
            killed = program.workers()[0]
            os.kill(killed, signal.SIGKILL)
            wait_for(lambda: killed not in program.workers() and len(program.workers()) == 4, "a new worker")
        wait_for(room, "all have left, those of the killed one too")
        assert program.stop() == 0
