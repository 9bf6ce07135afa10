"""The real program against the model of scenarios, over sockets, while it is reloaded with other scenarios.

Clients connect without TLS, with implicit TLS, or use STARTTLS; they cut their commands at will, and leave as
they like. Meanwhile the scenario changes with SIGHUP, and workers come and go with SIGTTIN and SIGTTOU. A
connection has the rules of the worker that took it to its end, so its replies must be those of one version
of the scenario that was in force when it began.
"""

from __future__ import annotations

import signal
import socket
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.certificates import issue
from tests.fuzz import scenarios
from tests.fuzz.scenario_model import Model, ModelSession, Received, Rule
from tests.program import Program, descriptors, free_port, title, wait_for
from tests.resource_usage import master_and_workers
from tests.smtp_client import reset_on_close, unverified_tls

CLIENTS = 8
"""Clients at the same time."""

VERSIONS = 6
"""Scenarios that take turns in a run."""

PATIENCE = 30.0
"""Seconds in which each reply must arrive."""

RETIREMENT = 1.0
"""Seconds in which old workers have stopped accepting after a reload."""

SETTLED = 20
"""Equal looks at the descriptors, one after the other, after which they no longer change."""

DELAYS = (0.02, [0.01, 0.05])

UNPREDICTABLE = frozenset(("attempt", "greylist", "window", "chance", "when_unknown", "listener"))
"""Conditions that depend on other clients, on the time, or on where the server listens."""


@dataclass
class ReloadResult:
    """What was done, and what went wrong."""

    connections: int = 0
    commands: int = 0
    reloads: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, other: ReloadResult) -> None:
        """Add the result of another client."""
        self.connections += other.connections
        self.commands += other.commands
        self.reloads += other.reloads
        self.findings += other.findings


class Version:
    """A scenario of which each reply can be predicted."""

    def __init__(self, source: Random, strict: bool) -> None:
        while not (rules := list(predictable_rules(source))):
            pass
        self.rules = rules
        self.text = "".join(scenarios.table("rule", rule) for rule in self.rules)
        self.model = Model(self.rules, {}, "", strict=strict)


def predictable_rules(source: Random) -> Iterator[Rule]:
    """Yield the rules of a random scenario that hang on nothing but their own connection."""
    for rule in scenarios.random_rules(source):
        if UNPREDICTABLE & rule.keys() or rule.get("then") == "stall":
            continue
        if rule.get("throttle", {"per": "connection"}).get("per") != "connection":
            continue
        if "client" in rule:
            rule["client"] = source.choice(("127.0.0.0/8", "192.0.2.0/24"))
        if "delay" in rule:
            rule["delay"] = source.choice(DELAYS)
        yield rule


class LiveModelSession(ModelSession):
    """A connection as the model sees it. Replies may come later than their rule says, but not earlier."""

    def expect(self, received: Received | None, code: int, rule: Rule | None = None) -> str:
        at_once = received if received is None or rule is not None else Received(received.lines, 0.0)
        return super().expect(at_once, code, rule)

    def check_wait(self, rule: Rule, received: Received) -> str:
        delay = rule.get("delay", 0)
        least = delay[0] if isinstance(delay, list) else delay
        early = received.waited < least and not isinstance(rule.get("then"), dict)
        return f"held back for {received.waited:.3f} s and not {delay}" if early else ""


class Client:
    """A connection that is played with each version of the scenario that may be in force."""

    def __init__(self, run: ReloadRun, source: Random) -> None:
        self.run, self.source = run, source
        self.implicit_tls = source.random() < 0.25
        self.log: list[str] = []
        self.unread = b""
        self.closed = False
        self.versions: set[Version] = set()
        self.sent_at = time.monotonic()
        """When the last octets were sent, or the connection began."""

    def play(self) -> str:
        """Hold a conversation; return what is wrong, or an empty text."""
        self.versions = {*self.run.in_force}
        port = self.run.tls_port if self.implicit_tls else self.run.program.port
        try:
            self.socket: socket.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        except ConnectionResetError:  # by a rule for CONNECT, before this process had seen the connection
            return self.compare_greeting(None)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError), ExitStack() as stack:
            stack.callback(lambda: self.socket.close())
            if self.implicit_tls:
                self.start_tls()
            problem = self.compare_greeting(self.read_reply())
            commands, in_body = scenarios.random_commands(self.source), False
            for _ in range(self.source.randrange(1, 12)):
                if problem or self.ended:
                    break
                problem, in_body = self.say_body() if in_body else self.say(commands)
            return problem or (self.check_end() if self.ended else self.leave())
        return ""

    def compare_greeting(self, greeting: Received | None) -> str:
        """Compare the greeting, and begin a session of the model for each version that may be in force."""
        self.versions |= {*self.run.in_force}
        self.candidates = [LiveModelSession(version.model, "127.0.0.1") for version in self.versions]
        for candidate in self.candidates:
            candidate.tls = self.implicit_tls
        return self.compare(greeting, lambda candidate: candidate.greeting(greeting))

    @property
    def ended(self) -> bool:
        """Whether the connection has ended by all versions."""
        return all(candidate.ended for candidate in self.candidates)

    def compare(self, received: Received | None, step: Callable[[LiveModelSession], str]) -> str:
        """Let all candidates take a step; leave out those that are wrong, unless all are."""
        after_the_end = "" if received is None else f"{received} after the end"
        problems = [after_the_end if candidate.ended else step(candidate) for candidate in self.candidates]
        right = [
            candidate for candidate, problem in zip(self.candidates, problems, strict=True) if not problem
        ]
        if not right:
            return "; ".join(dict.fromkeys(problems))
        self.candidates = right
        return ""

    def say(self, commands: Iterator[str]) -> tuple[str, bool]:
        """Send a group of commands; return what is wrong with the replies, and whether a body may follow."""
        group = [next(commands)]
        while self.source.random() < 0.4 and group[-1].split()[0] not in ("DATA", "STARTTLS", "QUIT"):
            group.append(next(commands))
        self.send("".join(f"{line}\r\n" for line in group).encode())
        received = None
        for line in group:
            received = self.read_reply()
            self.log.append(f"{line} -> {received}")
            self.run_commands(1)

            def step(candidate: LiveModelSession, line: str = line, reply: Received | None = received) -> str:
                return candidate.command(line, reply)

            if problem := self.compare(received, step):
                return problem, False
            if self.ended:
                return "", False
        last, code = group[-1].split()[0], received.code if received is not None else 0
        if last == "STARTTLS" and code == 220:
            self.start_tls()
        return "", last == "DATA" and code == 354

    def say_body(self) -> tuple[str, bool]:
        """Send a message."""
        fields = self.source.sample(scenarios.FIELDS, self.source.randrange(3))
        body = "".join(f"{one}\r\n" for one in fields).encode() + b"\r\nHello\r\n"
        self.send(body + b".\r\n")
        received = self.read_reply()
        self.log.append(f"{fields} -> {received}")
        self.run_commands(1)
        unfolded = [": ".join(part.strip() for part in one.split(":", 1)) for one in fields]
        return self.compare(
            received, lambda candidate: candidate.end_of_message(unfolded, len(body), received)
        ), False

    def run_commands(self, count: int) -> None:
        self.run.result.commands += count

    def send(self, octets: bytes) -> None:
        self.sent_at = time.monotonic()
        with suppress(OSError):  # the server has closed the connection: a reply tells why
            while octets:
                size = (
                    len(octets) if self.source.random() < 0.6 else self.source.randrange(1, len(octets) + 1)
                )
                self.socket.sendall(octets[:size])
                octets = octets[size:]

    def read_reply(self) -> Received | None:
        """Return the next reply; None if the connection was closed before its end."""
        lines: list[str] = []
        while True:
            line, newline, rest = self.unread.partition(b"\r\n")
            if newline:
                self.unread = rest
                lines.append(line.decode())
                if line[3:4] == b" ":
                    return Received(lines, time.monotonic() - self.sent_at)
                continue
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                self.run.result.findings.append(f"no reply for {PATIENCE:g} s: {self.log}")
                data = b""
            except OSError:
                data = b""
            if not data:
                self.closed = True
                return None
            self.unread += data

    def start_tls(self) -> None:
        self.socket = self.run.tls.wrap_socket(self.socket)

    def check_end(self) -> str:
        """Return what is wrong with the end of a connection that the server closes."""
        return "" if self.closed or self.read_reply() is None else "more follows the end"

    def leave(self) -> str:
        """Leave in one of the ways in which clients leave."""
        way = self.source.choice(("quit", "close", "reset", "half-close"))
        if way == "quit":
            with suppress(OSError):
                self.socket.sendall(b"QUIT\r\n")
        elif way == "reset":
            reset_on_close(self.socket)
        elif way == "half-close" and not isinstance(self.socket, ssl.SSLSocket):
            self.socket.shutdown(socket.SHUT_WR)
            while self.read_reply() is not None:
                pass
        return ""


class ReloadRun:
    """A program, its clients, and what changes it."""

    def __init__(self, seed: int, strict: bool) -> None:
        self.seed, self.source = seed, Random(seed)
        self.strict = strict
        self.versions = [Version(self.source, strict) for _ in range(VERSIONS)]
        self.in_force = [self.versions[0]]
        """The version that new connections get, or the two of which they get one."""
        self.result = ReloadResult()
        self.tls = unverified_tls()
        self.over = threading.Event()
        self.tls_port = free_port()

    def run_for(self, seconds: float) -> ReloadResult:
        """Run clients for this time against a new program."""
        with tempfile.TemporaryDirectory() as folder:
            certificate, path = issue(Path(folder)), Path(folder) / "rules.toml"
            path.write_text(self.versions[0].text)
            options = ("--strict",) if self.strict else ()
            with Program(
                *certificate.options,
                *(f"--ssl_port={self.tls_port}", f"--scenario={path}", "--drain_timeout=120", *options),
            ) as self.program:
                before = self.settled_descriptors()
                self.run_clients(seconds, path)
                self.reload()  # as many workers as at the start, whatever signal was the last
                self.program.wait_until_idle(90)
                wait_for(lambda: len(self.program.workers()) <= 2, "old workers have ended", 90)
                self.check_program(before)
        return self.result

    def run_clients(self, seconds: float, path: Path) -> None:
        until = time.monotonic() + seconds
        with ThreadPoolExecutor(CLIENTS) as pool:
            futures = [pool.submit(self.run_client, number, until) for number in range(CLIENTS)]
            while not all(future.done() for future in futures):
                time.sleep(self.source.uniform(0.05, 1.0))
                self.change(path)
            for future in futures:
                future.result()

    def run_client(self, number: int, until: float) -> None:
        source = Random(f"{self.seed} {number}")
        while time.monotonic() < until:
            client = Client(self, source)
            problem = client.play()
            self.result.connections += 1
            if problem:
                texts = (version.text for version in client.versions)
                self.result.findings.append("\n".join((problem, *client.log, *texts)))

    def change(self, path: Path) -> None:
        """Put another scenario in force, or change the number of workers."""
        if self.result.reloads and self.source.random() < 0.2:
            number = self.source.choice((signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1))
            self.program.process.send_signal(number)
            return
        fresh = self.source.choice(self.versions)
        path.write_text(fresh.text)
        self.in_force = [*self.in_force, fresh]
        self.reload()
        time.sleep(RETIREMENT)
        self.in_force = [fresh]
        self.result.reloads += 1

    def reload(self) -> None:
        """Reload, and wait for the end of that."""
        reloads = self.program.output().count("reloaded:")
        self.program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: self.program.output().count("reloaded:") > reloads, "the reload", 60)

    def descriptors(self) -> Counter[str]:
        """Return the open descriptors of master and workers, by process and kind.

        Memory that all processes share is left out: it is made when a scenario first needs it.
        """
        return Counter(
            f"{title(pid)}: {target.partition('[')[0]}"
            for pid in master_and_workers(self.program.pid)
            for target in descriptors(pid)
            if not target.startswith("/memfd:")
        )

    def settled_descriptors(self) -> Counter[str]:
        """Return the open descriptors once they no longer change: a worker that starts closes some."""
        last: list[Counter[str]] = []

        def is_settled() -> bool:
            last.append(self.descriptors())
            return len(last) > SETTLED and all(one == last[-1] for one in last[-SETTLED:])

        wait_for(is_settled, "the descriptors no longer change", 60)
        return last[-1]

    def check_program(self, before: Counter[str]) -> None:
        """Add a finding for a traceback, for descriptors that stay open, and for a wrong exit status."""
        findings = self.result.findings
        after = self.settled_descriptors()
        if after != before:
            findings.append(f"descriptors: {after - before} more than at the start, {before - after} less")
        if status := self.program.stop():
            findings.append(f"exit status {status}")
        output = self.program.output()
        if (place := output.find("Traceback")) >= 0:
            findings.append(f"a traceback: {output[place : place + 4000]}")
