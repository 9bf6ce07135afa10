"""Guilty and barely innocent senders for each row, in all cuts and settings: an engine's, and a server's."""

from __future__ import annotations

import itertools
import socket
import ssl
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackhole.settings import ACCELERATORS
from blackhole.smtp.violations import OF_CONTENT, VIOLATIONS
from tests.certificates import Certificate
from tests.program import scenario_option
from tests.service import Serve, Service
from tests.smtp_client import read_until_closed
from tests.verdict_cases import CASES
from tests.verdict_player import (
    BODY,
    EHLO,
    PIPELINING,
    TLS,
    Case,
    Chunk,
    MailData,
    Reconnect,
    Run,
    Step,
    combinations,
    is_playable,
    problems_of,
)

ON_CONNECTIONS = ("early-talk", "no-quit", "hung-up-in-body")
"""The rules about connections, which an engine has none of."""

RULES = [
    violation.name
    for violation in VIOLATIONS
    if violation.name not in ON_CONNECTIONS and violation.sampled_in not in OF_CONTENT
]
"""The rules about sessions; those about the content of messages have cases of their own."""

PAIRS = 2
"""Pairs of settings in which each case is played, drawn at random but the same in each run."""

SINGLE = combinations(1)
DOUBLE = [chosen for chosen in combinations(2) if len(chosen) == 2]


@pytest.mark.pure
@pytest.mark.parametrize("rule", RULES)
def test_rule_has_guilty_and_barely_innocent_senders(rule: str) -> None:
    cases = [case for case in CASES if case.rule == rule]
    assert any(case.is_guilty for case in cases)
    assert any(not case.verdicts for case in cases)


@pytest.mark.pure
@pytest.mark.without_coverage
@pytest.mark.parametrize("rule", RULES)
def test_verdicts_are_those_of_the_table_in_all_cuts_and_settings(rule: str) -> None:
    random = Random(rule)
    problems = [
        f"{case} {sorted(settings)}: {problem}"
        for case in CASES
        if case.rule == rule
        for settings in (*SINGLE, *random.sample(DOUBLE, PAIRS))
        if is_playable(case, settings)
        for problem in problems_of(case, settings)
    ]
    assert problems == []


def test_no_case_stands_twice_in_the_table() -> None:
    assert [name for name, count in Counter(map(str, CASES)).items() if count > 1] == []


ANY_RULES = """
[[rule]]
phase = "MAIL"
sender = "refused@a.test"
reply = "451 4.3.0 Later"

[[rule]]
phase = "RCPT"
recipient = "refused@b.test"
reply = "550 5.1.1 No such user"

[[rule]]
phase = "RCPT"
recipient = "bye@b.test"
reply = "421 4.3.2 Bye"

[[rule]]
phase = ["DATA", "BDAT"]
sender = "nodata@a.test"
reply = "451 4.3.0 Later"

[[rule]]
phase = "."
sender = "nomail@a.test"
reply = "554 5.6.0 No"
"""

ANY_COMMANDS = """\
EHLO client.test|EHLO client.test|HELO client.test|EHLO laptop|EHLO|RSET|NOOP|HELP|VRFY ann|XYZ|BOGUS|QUIT
STARTTLS|MAIL FROM:<ann@a.test>|MAIL FROM:<ann@a.test>
MAIL FROM:<refused@a.test>|MAIL FROM:<nodata@a.test>
MAIL FROM:<nomail@a.test>|MAIL FROM:<ann@a.test> SIZE=9|MAIL FROM:<ann@a.test> SIZE=2000
MAIL FROM:<a@b.test> Y=1|MAIL FROM: <ann@a.test>
MAIL FROM:<ann@a.test> BODY=8BITMIME|MAIL FROM:<\xe4@a.test>|RCPT TO:<bob@b.test>
RCPT TO:<bob@b.test>|RCPT TO:<refused@b.test>|RCPT TO:<bye@b.test>|RCPT TO:|DATA|DATA|DATA now
AUTH PLAIN AGFubgBzZWNyZXQ=|AUTH GSSAPI|AUTH PLAIN AGZhaWw9AHg="""

ANY_STEPS: tuple[Step, ...] = (
    *(f"{command}\r\n".encode() for command in ANY_COMMANDS.replace("\n", "|").split("|")),
    *(b"NOOP %s\r\n" % (size * b"x") for size in (600, 3000)),
    *(TLS, BODY, MailData(b"a\nb\xff\r\n.x\r\n.\r\n"), MailData(1500 * b"x" + b"\r\n.\r\n")),
    *(Chunk(b"Hello\r\n"), Chunk(b"Bye\r\n", True), Chunk(b"", True), Chunk(200 * b"1234567\r\n")),
)
"""Commands stand twice to come more often."""

CHANGE_NOTHING = ("delay", "never matches", "changes nothing", "looked up", "general path")
"""Settings that must not change a verdict."""


@pytest.mark.pure
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(ANY_STEPS), max_size=14),
    st.sampled_from([one for one in combinations(3) if one.issubset(CHANGE_NOTHING)]),
    st.booleans(),
)
def test_verdicts_on_any_conversation_do_not_depend_on_cuts_delays_and_rules_that_change_nothing(
    steps: list[Step], chosen: frozenset[str], strict: bool
) -> None:
    options: dict[str, Any] = {
        "auth": True,
        "auth_plaintext": True,
        "message_size_limit": 1000,
        "strict": strict,
    }
    case = Case("any", "conversation", (EHLO, *steps), (), ANY_RULES, options, {"unseen": None})
    plain = Run(case, "alone", frozenset())
    case = replace(case, verdicts=tuple(plain.found))
    assert list(problems_of(case, chosen)) == []


# On sockets.


@pytest.fixture(params=[ACCELERATORS, frozenset()], ids=["fast", "simple"])
def accelerators(request: pytest.FixtureRequest) -> frozenset[str]:
    """Run each test with all accelerators, and with none."""
    return frozenset(request.param)


NUMBERS = itertools.count(1)

CLOSED = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""What a client meets on a connection that the server has closed, with and without TLS."""


class Client:
    """Does on a socket what a run did with an engine."""

    def __init__(self, service: Service, context: ssl.SSLContext, secure: bool) -> None:
        self.service, self.context, self.secure = service, context, secure
        self.number = next(NUMBERS)
        self.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def connect(self) -> None:
        self.socket: socket.socket = socket.create_connection(self.service.address, 20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.secure:
            self.start_tls()
        self.read(1)

    def start_tls(self) -> None:
        self.socket = self.context.wrap_socket(self.socket, server_hostname="mx.test")

    def read(self, replies: int) -> None:
        """Read so many replies, or to the end."""
        heard = b""
        while (
            sum(line[3:4] == b" " for line in heard.splitlines(keepends=True) if line[-1:] == b"\n") < replies
        ):
            data = b""
            with suppress(*CLOSED):
                data = self.socket.recv(65536)
            if not data:
                return
            heard += data

    def close(self) -> None:
        """Close, once the server has said all."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            read_until_closed(self.socket, allow_tls_errors=True)
        self.socket.close()

    def play(self, run: Run, by_octet: bool) -> None:
        """Do what the run did, with Message-IDs of its own."""
        for what, octets, replies in run.log:
            if what == "start TLS":
                self.start_tls()
            elif what == "connect again":
                self.close()
                self.connect()
            else:
                octets = octets.replace(b"Message-ID: <", b"Message-ID: <%d." % self.number)
                size = 1 if by_octet and len(octets) < 200 else len(octets)
                with suppress(*CLOSED):
                    for start in range(0, len(octets), size):
                        self.socket.sendall(octets[start : start + size])
                self.read(replies)
        self.close()


def counted(service: Service) -> Counter[str]:
    """Return the violations that a server has counted, but how connections ended."""
    service.settle()
    found = service.stats.snapshot().violations
    return Counter({name: count for name, count in found.items() if count and name not in ON_CONNECTIONS})


def without_pipelining(verdicts: Counter[str]) -> Counter[str]:
    return Counter({name: count for name, count in verdicts.items() if name not in PIPELINING})


def options_of(case: Case, certificate: Certificate) -> list[str]:
    """Return the options of the program that a case needs."""
    options = dict(case.options)
    found = ["--inspect=all"]
    if options.pop("starttls", True):
        found += certificate.options
    if options.pop("auth", False):
        found.append("--auth=any")
    if options.pop("auth_plaintext", False):
        found.append("--auth_plaintext=yes")
    if options.pop("extensions", None):
        found.append("--extensions=default,BINARYMIME")
    if "message_size_limit" in options:
        found.append(f"--message_size_limit={options.pop('message_size_limit')}")
    assert not options
    return found


KINDS = (frozenset[str](), frozenset(("starttls",)), frozenset(("implicit tls",)), frozenset(("strict",)))

SHARES = 8
"""The cases are shared out among so many tests."""


@pytest.mark.without_coverage
@pytest.mark.parametrize("share", range(SHARES))
def test_verdicts_are_those_of_the_table_on_sockets(
    share: int, serve: Serve, certificate: Certificate, tmp_path: Path
) -> None:
    """Each case in one kind of connection, and another one in the next test."""
    services: dict[tuple[str, ...], Service] = {}
    problems = []
    for number, case in enumerate(CASES[share::SHARES]):
        settings = KINDS[(number + share) % len(KINDS)]
        if not is_playable(case, settings) or any(
            isinstance(step, Reconnect) and step.seconds for step in case.steps
        ):
            continue
        options = [*options_of(case, certificate), *(["--strict"] if "strict" in settings else [])]
        secure = "implicit tls" in settings
        key = (case.rules, str(secure), *options)
        if key not in services:
            if case.rules:
                folder = tmp_path / str(len(services))
                folder.mkdir()
                options.append(scenario_option(folder, case.rules))
            services[key] = serve(*options, secure=secure)
        service = services[key]
        for cut in ("alone", "one segment", "octets"):
            run = Run(case, "alone" if cut == "octets" else cut, settings)
            before = counted(service)
            with Client(service, certificate.client, secure) as client:
                client.play(run, cut == "octets")
            found = counted(service) - before
            wanted = Counter(run.found)
            if cut == "octets":  # whether they come together is for the network to say
                found, wanted = map(without_pipelining, (found, wanted))
            if found != wanted:
                problems.append(f"{case} {sorted(settings)} {cut}: {found} instead of {wanted}")
    assert problems == []


def ending(service: Service) -> list[str]:
    """Return the verdicts on how connections began and ended."""
    service.settle()
    found = service.stats.snapshot().violations
    return [name for name in ON_CONNECTIONS for _ in range(found[name])]


@pytest.mark.parametrize(
    "turns", [(b"RSET\r\nQUIT\r\n",), (b"RSET\r\n", b"QUIT\r\n")], ids=["one segment", "two"]
)
def test_quit_that_waits_behind_a_late_reply_is_heard(turns: tuple[bytes, ...], serve: Serve) -> None:
    """The client has said QUIT, and closes before the replies come."""
    service = serve("--delay=0.05", "--inspect=all")
    with socket.create_connection(service.address) as client:
        client.recv(1000)
        client.sendall(b"EHLO client.test\r\n")
        client.recv(1000)
        for turn in turns:
            client.sendall(turn)
            time.sleep(0.01)
    assert ending(service) == []


ENVELOPE = b"EHLO c.test\r\n", b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n"

ENDS: dict[str, tuple[tuple[bytes, ...], list[str]]] = {
    "nothing sent": ((), []),
    "QUIT": ((b"QUIT\r\n",), []),
    "QUIT behind a message": ((*ENVELOPE, b"x\r\n.\r\nQUIT\r\n"), []),
    "quit": ((b"EHLO c.test\r\n", b"quit\r\n"), []),
    "HTTP, which the server closes": ((b"GET / HTTP/1.1\r\n",), []),
    "QUIT that is refused": ((b"QUIT now\r\n",), ["no-quit"]),
    "EHLO": ((b"EHLO c.test\r\n",), ["no-quit"]),
    "half a command": ((b"EHLO c.te",), ["no-quit"]),
    "half a QUIT": ((b"EHLO c.test\r\n", b"QUI"), ["no-quit"]),
    "a message": ((*ENVELOPE, b"x\r\n.\r\n"), ["no-quit"]),
    "RSET": ((*ENVELOPE[:1], b"RSET\r\n"), ["no-quit"]),
    "no body": (ENVELOPE, ["hung-up-in-body"]),
    "half a body": ((*ENVELOPE, b"Subject: x\r\n\r\nHel"), ["hung-up-in-body"]),
    "LF.LF": ((*ENVELOPE, b"Hello\n.\nQUIT\n"), ["hung-up-in-body"]),
    "half an end": ((*ENVELOPE, b"Hello\r\n.\r"), ["hung-up-in-body"]),
}


@pytest.mark.parametrize("kind", ["plain", "implicit tls", "delayed"])
def test_connection_that_ends_is_judged_by_what_came_before(
    kind: str, serve: Serve, certificate: Certificate
) -> None:
    secure, delay = kind == "implicit tls", ["--delay=0.01"] if kind == "delayed" else []
    service = serve("--inspect=all", *delay, secure=secure)
    before: list[str] = []
    for about, (turns, wanted) in ENDS.items():
        with Client(service, certificate.client, secure) as client:
            for turn in turns:
                client.socket.sendall(turn)
                if turn.endswith(b"\r\n"):
                    client.read(turn.count(b"\n") if turn.startswith((b"EHLO", b"MAIL")) else 1)
            client.close()
        found = ending(service)
        assert Counter(found) - Counter(before) == Counter(wanted), about
        before = found


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "implicit tls"])
def test_client_that_speaks_before_a_late_greeting_is_accused(
    secure: bool, serve: Serve, certificate: Certificate, tmp_path: Path
) -> None:
    greeting = scenario_option(tmp_path, "[[rule]]\nphase = 'CONNECT'\ndelay = '50ms'\n")
    service = serve("--inspect=all", greeting, secure=secure)
    for early in (False, True):
        with socket.create_connection(service.address, 20) as plain:
            client = certificate.client.wrap_socket(plain, server_hostname="mx.test") if secure else plain
            if not early:
                client.recv(1000)
            client.sendall(b"EHLO client.test\r\nQUIT\r\n")
            read_until_closed(client, allow_tls_errors=True)
            client.close()
        assert ending(service) == (["early-talk"] if early else [])
