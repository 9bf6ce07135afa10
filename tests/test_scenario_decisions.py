"""What docs/scenarios.md says about attempts, draws, sizes and refused commands, one claim at a time."""

from __future__ import annotations

from random import Random

import pytest

from blackhole.rules.attempt_store import Answer, Update
from blackhole.rules.context import RuleContext
from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.replies import NextAction
from blackhole.smtp.session import Session
from blackhole.store.attempts import AttemptTable
from tests.engines import evaluator_of, make_engine

pytestmark = pytest.mark.pure


class SimulatedListener:
    """A listener with these rules, and a memory."""

    def __init__(self, rules: str, strict: bool = False) -> None:
        environment = RuleEnvironment(attempt_store=AttemptTable(sets=64))
        self.engine = make_engine(parse_rules(rules, "test.toml"), environment=environment, strict=strict)

    def talk(self, *lines: str, client: str = "192.0.2.1") -> list[str]:
        """Return the codes of the replies to some lines, in a connection of their own."""
        session = self.engine.session(client=client)
        session.greet()
        return [reply_to(session, line) for line in lines]


def reply_to(session: Session, line: str) -> str:
    out = session.receive(line.encode() + b"\r\n")
    while session.next_action is NextAction.SLEEP:
        out += session.resume()
    return out.decode()[:3]


MAIL, RCPT = "MAIL FROM:<ann@a.example>", "RCPT TO:<bob@b.example>"


def second(phase: str, more: str = "") -> SimulatedListener:
    """A listener that refuses the second attempt at a phase."""
    return SimulatedListener(f"[[rule]]\nphase = '{phase}'\nattempt = 2\nreply = '450 4.7.1 Second'\n{more}")


def test_pair_of_an_attempt_ignores_case_in_every_alphabet() -> None:
    listener = second("RCPT")
    assert listener.talk("MAIL FROM:<ÄNN@a.example> SMTPUTF8", "RCPT TO:<BOB@B.example>")[-1] == "250"
    assert listener.talk("MAIL FROM:<änn@A.EXAMPLE> SMTPUTF8", "RCPT TO:<bob@b.example>")[-1] == "450"


def test_null_sender_counts_with_its_recipient_and_else_by_the_client() -> None:
    listener = second("RCPT")
    assert listener.talk("MAIL FROM:<>", RCPT, client="192.0.2.1")[-1] == "250"
    assert listener.talk("MAIL FROM:<>", RCPT, client="192.0.2.2")[-1] == "450"
    listener = second("MAIL")
    assert listener.talk("MAIL FROM:<>", client="192.0.2.1") == ["250"]
    assert listener.talk("MAIL FROM:<>", client="192.0.2.2") == ["250"]
    assert listener.talk("MAIL FROM:<>", client="192.0.2.1") == ["450"]


def test_null_senders_share_the_quota_of_the_empty_domain() -> None:
    rule = "[[rule]]\nthrottle = { messages = 1, per = 'hour', by = 'sender-domain' }\nreply = '450 4.7.1 No'"
    listener = SimulatedListener(rule)
    assert listener.talk("MAIL FROM:<>", "MAIL FROM:<ann@a.example>") == ["250", "250"]
    assert listener.talk("MAIL FROM:<>", client="192.0.2.2") == ["450"]


@pytest.mark.parametrize("command", ["NOOP", "VRFY bob", "RSET", "EHLO c.example"])
def test_command_in_a_transaction_counts_for_its_pair(command: str) -> None:
    listener = second(command.split()[0])
    assert listener.talk(MAIL, RCPT, command)[-1] != "450"
    assert listener.talk(MAIL, "RCPT TO:<eve@b.example>", command)[-1] != "450", "another pair"
    assert listener.talk(command)[-1] != "450", "no transaction: counted for the client"
    assert listener.talk(MAIL, RCPT, command, client="192.0.2.9")[-1] == "450"


@pytest.mark.parametrize(
    "choice", ["reply = ['250 2.1.5 One', '250 2.1.5 Two']", "delay = [0, 0.001]", "chance = 0.5"]
)
def test_rule_with_a_random_choice_and_a_seed_counts_attempts(choice: str) -> None:
    more = "reply = 'accept'\n" * choice.startswith("chance")
    rule = f"[[rule]]\nphase = 'RCPT'\n{choice}\n{more}"
    for seed, attempts in (("seed = 7\n", 2), ("", 1)):
        session = SimulatedListener(seed + rule).engine.session()
        for line in (MAIL, RCPT, RCPT):
            reply_to(session, line)
        assert evaluator_of(session).context.attempt == attempts


@pytest.mark.parametrize("strict", [False, True])
def test_command_that_is_answered_503_or_501_counts_no_attempt(strict: bool) -> None:
    refuse = "[[rule]]\nphase = 'MAIL'\nsender = 'eve@*'\nreply = '550 5.7.1 No'\n"
    listener = SimulatedListener(
        refuse + "[[rule]]\nphase = 'RCPT'\nattempt = '>= 2'\nreply = '450 4.7.1 Second'\n", strict
    )
    hello = "EHLO c.example"
    assert listener.talk(hello, "MAIL FROM:<eve@a.example>", RCPT, RCPT)[2:] == ["503", "503"]
    assert listener.talk(hello, MAIL, f"{RCPT} FUTURE=1", "RCPT TO")[2:] == ["555", "501"]
    assert listener.talk(hello, "MAIL FROM:<eve@a.example>", "RSET", MAIL, RCPT, RCPT)[4:] == ["250", "450"]


def test_name_of_a_refused_hello_does_not_stay() -> None:
    listener = SimulatedListener(
        "[[rule]]\nphase = ['HELO', 'EHLO']\nhelo = 'bad.*'\nreply = '550 5.7.1 No'\n"
        "[[rule]]\nphase = 'MAIL'\nhelo = 'bad.*'\nreply = '550 5.7.1 Bad'\n"
        "[[rule]]\nphase = 'MAIL'\nhelo = 'good.*'\nreply = '451 4.7.1 Good'\n"
    )
    assert listener.talk("EHLO bad.example", MAIL) == ["550", "250"]
    assert listener.talk("EHLO good.example", "HELO bad.example", MAIL) == ["250", "550", "451"]


def test_data_that_is_refused_leaves_the_transaction_open() -> None:
    listener = second("DATA")
    assert listener.talk(MAIL, RCPT, "DATA", ".") == ["250", "250", "354", "250"]
    codes = listener.talk(MAIL, RCPT, "DATA", "RCPT TO:<eve@b.example>", "DATA", ".")
    assert codes == ["250", "250", "450", "250", "354", "250"]


@pytest.mark.parametrize(("phase", "lines"), [("MAIL", 1), ("RCPT", 2), ("DATA", 3), ("BDAT", 3)])
def test_size_before_the_end_of_a_message_is_what_mail_declared(phase: str, lines: int) -> None:
    listener = SimulatedListener(
        f"[[rule]]\nphase = '{phase}'\nsize = '> 100'\nreply = '552 5.3.4 Large'\n"
        f"[[rule]]\nphase = '{phase}'\nsize = '= 0'\nreply = '451 4.3.0 Unknown'\n"
    )
    last = {"DATA": ["DATA"], "BDAT": ["BDAT 0 LAST"]}.get(phase, [])
    for size, code in ((" SIZE=101", "552"), ("", "451")):
        talk = [MAIL + size, RCPT, *last][:lines]
        assert listener.talk(*talk)[-1] == code


def test_size_at_the_end_of_a_message_is_what_was_received() -> None:
    listener = SimulatedListener("[[rule]]\nphase = '.'\nsize = '> 100'\nreply = '552 5.3.4 Large'\n")
    for octets, code in ((96, "250"), (99, "552")):
        # With the line end behind it, and without the final dot.
        assert listener.talk(f"{MAIL} SIZE=5", RCPT, "DATA", f"..{'x' * (octets - 2)}\r\n.")[-1] == code


def test_draw_depends_on_the_phase() -> None:
    (rule,) = parse_rules(
        "seed = 7\n[[rule]]\nphase = '*'\nchance = 0.5\nreply = '450 4.7.1 No'", "test.toml"
    )
    draws = set()
    for phase in ("RCPT", "DATA", "."):
        context = RuleContext()
        context.sender, context.recipient, context.phase = b"ann@a.example", b"bob@b.example", phase
        chance = rule.draw_chance(context, Random())
        draws.add(rule.draw_all(chance, context, Random()))
    assert len(draws) == 3
    assert len({number for four in draws for number in four}) == 12


DRAWS = "".join(
    f"[[rule]]\nphase = '{phase}'\nchance = 0.5\nreply = '45{number} 4.7.1 Drawn'\n"
    for number, phase in enumerate(("RCPT", "DATA", "."))
)


class CountingTable(AttemptTable):
    """A store that notes what is counted."""

    def __init__(self) -> None:
        super().__init__(sets=64)
        self.keys: list[bytes] = []

    def update(self, key: bytes, now: float, change: Update[Answer]) -> Answer | None:
        self.keys.append(key)
        return super().update(key, now, change)


def counted(rules: str, *lines: str) -> list[str]:
    """Return the keys of the attempts that some lines count, in a connection that says EHLO first."""
    table = CountingTable()
    engine = make_engine(parse_rules(rules, "test.toml"), environment=RuleEnvironment(attempt_store=table))
    session = engine.session(client="192.0.2.1")
    session.greet()
    for line in ("EHLO c.example", *lines):
        reply_to(session, line)
    return [key.decode().replace("\0", " ") for key in table.keys]


ACCEPT = DRAWS.replace("chance = 0.5", "chance = 1e-9")
PAIR = "ann@a.example bob@b.example"


def test_transaction_draws_with_the_number_of_its_first_draw() -> None:
    message = (MAIL, RCPT, "DATA", ".")
    assert counted("seed = 7\n" + ACCEPT, *message) == [f"RCPT {PAIR}"]
    assert counted("seed = 7\n" + ACCEPT, *message, *message) == [f"RCPT {PAIR}"] * 2
    without_rcpt = ACCEPT.partition("\n[[rule]]")[2]
    assert counted(f"seed = 7\n[[rule]]{without_rcpt}", *message) == [f"DATA {PAIR}"]
    assert counted(ACCEPT, *message) == []


def test_phase_that_comes_again_in_a_transaction_draws_with_another_number() -> None:
    two = (RCPT, "RCPT TO:<eve@b.example>")
    assert counted("seed = 7\n" + ACCEPT, MAIL, *two, *two[:1]) == [
        f"RCPT {PAIR}", "RCPT ann@a.example eve@b.example", f"RCPT {PAIR}"
    ]  # fmt: skip
    noop = "seed = 7\n[[rule]]\nphase = ['NOOP', 'RCPT']\nchance = 1e-9\nreply = '450 4.7.1 No'\n"
    assert counted(noop, MAIL, RCPT, "NOOP", "NOOP") == [f"RCPT {PAIR}", f"NOOP {PAIR}"]
    assert counted(noop, "NOOP", "NOOP") == ["NOOP 192.0.2.1"] * 2


def test_refused_recipient_leaves_the_draws_of_the_one_before_it() -> None:
    refuse = "[[rule]]\nphase = 'RCPT'\nrecipient = 'eve@*'\nreply = '550 5.1.1 No'\n"
    lines = (MAIL, RCPT, "RCPT TO:<eve@b.example>", "DATA", ".")
    assert counted("seed = 7\n" + refuse + ACCEPT, *lines) == [
        f"RCPT {PAIR}", "RCPT ann@a.example eve@b.example"
    ]  # fmt: skip


def test_condition_on_the_attempt_counts_at_each_phase() -> None:
    reading = "[[rule]]\nphase = '.'\nattempt = 9\nreply = '450 4.7.1 Ninth'\n"
    assert counted("seed = 7\n" + ACCEPT + reading, MAIL, RCPT, "DATA", ".") == [f"RCPT {PAIR}", f". {PAIR}"]


def test_seed_gives_the_same_at_every_phase_of_a_transaction_and_for_every_attempt() -> None:
    """What a seed gives is a promise to those who have written down what to expect."""
    listener = SimulatedListener("seed = 7\n" + DRAWS)
    heard = []
    for name in ("ann", "bob", "eve"):
        for _ in range(4):
            codes = listener.talk(f"MAIL FROM:<{name}@a.example>", RCPT, "DATA", ".")[1:]
            refused = next((place for place, code in enumerate(codes) if code[0] == "4"), 2)
            heard.append(" ".join(codes[: refused + 1]))
    assert heard == [
        *("250 451", "450", "250 354 452", "450"),
        *("250 354 452", "450", "450", "250 354 250"),
        *("250 451", "450", "450", "450"),
    ]
