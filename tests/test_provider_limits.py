"""The limits of all provider profiles in the real program: whom they defer, and whom they do not.

Each limit is played at a listener of its own, which has the profile with this limit turned down, so that it
takes a few messages to meet it. The rest of the profile stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from blackhole.rules import scenario
from blackhole.rules.context import RuleContext
from blackhole.rules.effects import Template
from blackhole.rules.limiters import ConcurrencyLimit, RateLimit
from blackhole.rules.model import Rule
from tests.program import Program, free_ports
from tests.redis_server import RedisServer
from tests.smtp_client import SMTPClient
from tests.test_provider_profiles import HOSTS, rules_of

SMALL: Final = 6
"""A limit that takes few messages to meet."""

NUMBER: Final = re.compile(r'((?:concurrent|messages|recipients|burst) = (?:"> )?)([0-9]+)')
"""A number of a limit, behind its name."""

OF_A_MESSAGE: Final = "recipients of a message"
"""The name of the rule that limits them, which is no throttle."""

MESSAGES_OF_A_CONNECTION: Final = 3
"""Messages that a sender puts into a connection: fewer than any profile allows."""


class Limit(NamedTuple):
    """A limit of a profile."""

    profile: str
    rule: str


def is_limit(rule: Rule) -> bool:
    return isinstance(rule.limiter, RateLimit | ConcurrencyLimit) or rule.name == OF_A_MESSAGE


LIMITS: Final = [Limit(name, rule.name) for name in HOSTS for rule in rules_of(name) if is_limit(rule)]


class LimitedServer(NamedTuple):
    """A listener with a limit, and the limits of its profile."""

    limit: Limit
    rules: tuple[Rule, ...]
    address: tuple[str, int]

    @property
    def rule(self) -> Rule:
        """The rule of the limit."""
        (found,) = (rule for rule in self.rules if rule.name == self.limit.rule)
        return found


def turned_down(limit: Limit) -> str:
    """Return the text of a profile with one limit turned down."""
    text = scenario.read_source(f"profile:{limit.profile}").text
    before, name, rest = text.partition(f'name = "{limit.rule}"\n')
    of_rule, blank, after = rest.partition("\n\n")
    return (
        before
        + name
        + NUMBER.sub(lambda found: f"{found[1]}{min(int(found[2]), SMALL)}", of_rule)
        + (blank + after)
    )


class LimitedProgram(Program):
    """The program with a listener for each limit of all profiles."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.servers = []
        for number, (limit, port) in enumerate(zip(LIMITS, free_ports(len(LIMITS)), strict=True)):
            file = folder / f"{number}.toml"
            file.write_text(turned_down(limit))
            rules = tuple(filter(is_limit, scenario.load_rules([str(file)])))
            self.servers.append(LimitedServer(limit, rules, ("127.0.0.1", port)))
            shares = "".join(f",set={name}=0" for name in scenario.read_source(str(file)).variables)
            options += (f"--listen=127.0.0.1:{port},scenario={file}{shares}",)
        super().__init__(*options)


class LimitTester:
    """A client with an address of its own, which meets one limit."""

    def __init__(self, server: LimitedServer, client: str, open_clients: ExitStack) -> None:
        self.rule, self.limits, self.address = server.rule, server.rules, server.address
        self.client = client
        self.open_clients = open_clients
        self.sent = 0
        self.refusals: set[str] = set()
        """The names of the limits that have refused something."""

    def play(self, times: int) -> None:
        """Send `times` as much as the limit allows at once."""
        limiter = self.rule.limiter
        if isinstance(limiter, ConcurrencyLimit):
            self.send_messages(self.connect(times * limiter.limit), 1)
        elif not isinstance(limiter, RateLimit):
            self.send_recipients(times * SMALL)
        elif not limiter.period:
            self.send_messages(self.connect(1), times * limiter.limit)
        else:
            messages = times * (limiter.burst or limiter.limit)
            connections = -(-messages // MESSAGES_OF_A_CONNECTION)
            self.send_messages(self.connect(connections), MESSAGES_OF_A_CONNECTION)

    def connect(self, count: int) -> list[SMTPClient]:
        """Open connections at the same time; return those that are greeted."""
        clients = [
            self.open_clients.enter_context(SMTPClient(self.address, source=self.client))
            for _ in range(count)
        ]
        return [client for client in clients if self.accepts(client.greeting)]

    def send_messages(self, clients: Sequence[SMTPClient], messages: int) -> None:
        """Send messages over connections in turn. One that is closed sends no more."""
        for _ in range(messages):
            clients = [client for client in clients if self.sends(client)]

    def sends(self, client: SMTPClient) -> bool:
        """Send one message; return whether the connection is still of use."""
        self.sent += 1
        limiter = self.rule.limiter
        is_one = isinstance(limiter, RateLimit) and not {"recipient", "pair"}.isdisjoint(limiter.by)
        recipient = f"{'bob' if is_one else self.sent}@{self.client}.example.com"
        lines = (
            *(f"MAIL FROM:<ann@{self.client}.client.test>", f"RCPT TO:<{recipient}>", "DATA"),
            "Subject: x\r\n\r\nx\r\n.",
        )
        for line in lines:
            said = client.command(line)
            if not self.accepts(said, recipient):
                return said[:3] not in ("421", "")
        return True

    def send_recipients(self, count: int) -> None:
        """Send a message to many recipients."""
        (client,) = self.connect(1)
        self.accepts(client.command("MAIL FROM:<ann@client.test>"))
        for number in range(count):
            self.accepts(client.command(f"RCPT TO:<{number}@example.com>"))

    def accepts(self, said: str, recipient: str = "") -> bool:
        """Take note of a reply, or of an end of the connection; return whether it is positive."""
        if said[:1] in ("2", "3"):
            return True
        context = RuleContext(client=self.client)
        context.recipient = recipient.encode()
        for rule in self.limits:
            replies = [one.fill(context) if isinstance(one, Template) else one for one in rule.effect.replies]
            if said.endswith(tuple(one.lines[-1] for one in replies)) if said else rule.effect.fault:
                self.refusals.add(rule.name)
        return False


def refusals(program: LimitedProgram, times: int) -> dict[Limit, set[str]]:
    """Return which limits of its profile refuse a sender that sends `times` as much as a limit allows."""
    found = {}
    for number, server in enumerate(program.servers):
        with ExitStack() as open_clients:
            tester = LimitTester(server, f"127.{times}.1.{number + 1}", open_clients)
            tester.play(times)
            found[server.limit] = tester.refusals
    return found


def check_limits(program: LimitedProgram) -> None:
    assert refusals(program, 1) == {limit: set() for limit in LIMITS}
    assert refusals(program, 2) == {limit: {limit.rule} for limit in LIMITS}
    assert program.stop() == 0


@pytest.mark.pure
def test_every_provider_has_a_limit() -> None:
    assert {limit.profile for limit in LIMITS} == {*HOSTS}


@pytest.mark.parametrize("workers", [1, 4])
def test_sender_is_deferred_at_twice_each_limit_of_each_provider_and_never_within(
    workers: int, tmp_path: Path
) -> None:
    with LimitedProgram(tmp_path, f"--workers={workers}") as program:
        check_limits(program)


def test_sender_is_deferred_behind_redis_at_twice_each_limit_of_each_provider_and_never_within(
    tmp_path: Path, redis: RedisServer
) -> None:
    with LimitedProgram(tmp_path, "--workers=4", f"--attempt_store={redis.url()}") as program:
        check_limits(program)
