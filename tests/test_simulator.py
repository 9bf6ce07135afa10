"""Scenarios on the real program: the same for any number of workers, reloaded, checked, in nobody's way."""

from __future__ import annotations

import os
import resource
import selectors
import signal
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from blackhole.store.server_facts import ServerFacts
from tests.conftest import Certificate
from tests.program import Program, run, wait_for

REFUSE = '[[rule]]\nphase = "RCPT"\nreply = "{code} 4.2.1 Later"\n'


@pytest.fixture
def scenario(tmp_path: Path) -> Iterator[Path]:
    """A scenario file that refuses."""
    path = tmp_path / "scenario.toml"
    path.write_text(REFUSE.format(code=450))
    yield path


def outcome(port: int, sender: str, recipient: str) -> str:
    """How an attempt ends: a code, or the name of what happened to the connection."""
    try:
        with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
            client.helo("client.test")
            client.mail(sender)
            code, said = client.rcpt(recipient)
            return f"{code} {said.decode()}"
    except (smtplib.SMTPServerDisconnected, ConnectionResetError):
        return "gone"


RANDOM_OUTCOMES = """
seed = 42

[[rule]]
phase = "RCPT"
recipient = "*@flaky.example"
chance = 0.4
reply = ["450 4.2.1 One", "451 4.2.1 Two", "452 4.2.1 Three"]

[[rule]]
phase = "RCPT"
chance = 0.2
then = "close"
"""


def test_same_seed_has_the_same_outcomes_with_one_worker_and_four(tmp_path: Path) -> None:
    path = tmp_path / "fate.toml"
    path.write_text(RANDOM_OUTCOMES)
    lists = []
    for workers in (1, 4):
        with Program(f"--workers={workers}", f"--scenario={path}") as program:
            domains = ("flaky.example", "other.example")
            lists.append(
                [
                    outcome(program.port, f"s{number % 7}@example.com", f"r{number}@{domains[number % 2]}")
                    for number in range(120)
                ]
            )
    assert lists[0] == lists[1]
    assert {reply[:3] for reply in lists[0]} == {"250", "450", "451", "452", "gon"}


def refusal(program: Program) -> str:
    return outcome(program.port, "ann@example.com", "bob@example.com")[:3]


def test_reload_reads_the_scenario_again(scenario: Path) -> None:
    with Program(f"--scenario={scenario}") as program:
        assert refusal(program) == "450"
        scenario.write_text(REFUSE.format(code=451))
        os.kill(program.pid, signal.SIGHUP)
        wait_for(lambda: refusal(program) == "451", "the new rules are in force")


def test_reload_of_a_broken_file_keeps_the_old_rules(scenario: Path) -> None:
    with Program(f"--scenario={scenario}") as program:
        workers = program.workers()
        scenario.write_text(REFUSE.format(code=451) + "chance = 2\n")
        os.kill(program.pid, signal.SIGHUP)
        said = f"reload failed, nothing has changed: {scenario}:4: rule 1: chance: expected a probability"
        wait_for(lambda: said in program.output(), "the mistake is in the log")
        assert refusal(program) == "450"
        assert program.workers() == workers


def test_reload_does_not_restart_the_clock_of_windows(scenario: Path) -> None:
    """The window was open in the first second; whoever starts the clock anew sees it open once more."""
    text = REFUSE.format(code=450) + 'window = "w"\n[[window]]\nname = "w"\nfor = "1500ms"\n'
    scenario.write_text(text)
    with Program(f"--scenario={scenario}") as program:
        wait_for(lambda: refusal(program) == "250", "the window is closed")
        before = program.workers()
        scenario.write_text(text.replace("450", "451"))
        os.kill(program.pid, signal.SIGHUP)
        wait_for(lambda: "reloaded" in program.output(), "the rules are read again")
        wait_for(lambda: not set(before) & set(program.workers()), "the old workers are gone")
        assert refusal(program) == "250"


def test_scenario_is_checked_before_anything_is_opened(scenario: Path) -> None:
    assert run("-t", f"--scenario={scenario}").returncode == os.EX_OK
    scenario.write_text(REFUSE.format(code="four"))
    for action in ("-t", "run"):
        done = run(action, f"--scenario={scenario}", "--listen=127.0.0.1:0")
        assert (done.returncode, done.stdout) == (os.EX_CONFIG, "")
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(
            f"blackhole: {scenario}:3: rule 1: reply: expected a reply with its code"
        )


def test_start_message_gives_the_number_of_rules(scenario: Path) -> None:
    with Program(f"--scenario={scenario}", "--scenario=profile:flaky") as program:
        assert ", 4 rules, " in program.output()


# Certificates


@pytest.mark.parametrize(
    ("fault", "error"), [("expired", "certificate has expired"), ("wrong-name", "Hostname mismatch")]
)
@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
def test_faulty_certificate_fails_verification(
    fault: str, error: str, implicit: bool, certificate: Certificate, scenario: Path
) -> None:
    """A client that trusts the authority still has this one thing against the certificate."""
    scenario.write_text(f'[[rule]]\nphase = "STARTTLS"\ncertificate = "{fault}"\n')
    tls = (f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}", "--hostname=mx.test")
    with Program(f"--scenario={scenario}", "--ssl_port=0", *tls) as program:
        port = program.port
        if implicit:
            (shown,) = [line for line in program.output().splitlines() if line.endswith(", TLS")]
            port = int(shown.split("listening on 127.0.0.1:")[1].split(",")[0])
        context = ssl.create_default_context(cadata=ServerFacts.of(program.pid)["authority"])
        with pytest.raises(ssl.SSLCertVerificationError, match=error), connected(port, implicit, context):
            pass


def connected(port: int, implicit: bool, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A client under TLS."""
    client = socket.create_connection(("127.0.0.1", port), 20)
    if not implicit:
        client.recv(1000)
        client.sendall(b"STARTTLS\r\n")
        assert client.recv(1000).startswith(b"220 ")
    return context.wrap_socket(client, server_hostname="mx.test")


def test_certificate_rule_without_tls_is_an_error(scenario: Path) -> None:
    scenario.write_text('[[rule]]\nphase = "STARTTLS"\ncertificate = "expired"\n')
    done = run("-t", f"--scenario={scenario}")
    assert done.returncode == os.EX_CONFIG
    assert done.stderr == 'blackhole: scenario: certificate = "expired" needs TLS; give ssl_cert too\n'


def test_implicit_tls_handshake_can_stall(certificate: Certificate, scenario: Path) -> None:
    scenario.write_text('[[rule]]\nphase = "STARTTLS"\nthen = "stall"\n')
    tls = (f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}", "--ssl_port=0")
    with Program(f"--scenario={scenario}", *tls) as program:
        (shown,) = [line for line in program.output().splitlines() if line.endswith(", TLS")]
        port = int(shown.split("listening on 127.0.0.1:")[1].split(",")[0])
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                certificate.client.wrap_socket(client, server_hostname="mx.test")


# A crowd that waits

CLIENTS = 10000


def test_ten_thousand_delayed_replies_slow_nobody_down(scenario: Path) -> None:
    """Counted: while all of them wait for a reply that is ten minutes away, others are served at once."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit[1] < CLIENTS + 1000:
        pytest.skip(f"no more than {limit[1]} descriptors")
    scenario.write_text('[[rule]]\nphase = "NOOP"\ndelay = 600\n')
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    with ExitStack() as undo:
        undo.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limit)
        program = undo.enter_context(
            Program("--workers=1", f"--max_connections={CLIENTS + 100}", f"--scenario={scenario}")
        )
        crowd = []
        for number in range(CLIENTS):
            client = socket.socket()
            undo.callback(client.close)
            # Any of 127.0.0.0/8 is this machine; one address has not enough ports to itself for sure.
            client.bind((f"127.0.0.{2 + number % 8}", 0))
            client.settimeout(30)
            client.connect(program.address)
            client.sendall(b"NOOP\r\n")
            crowd.append(client)
        for client in crowd:
            assert client.recv(1000).startswith(b"220 ")
        with socket.create_connection(program.address, 20) as fresh:
            assert fresh.recv(1000).startswith(b"220 ")
            took = []
            for _ in range(50):
                began = time.monotonic()
                fresh.sendall(b"HELO client.test\r\n")
                assert fresh.recv(1000).startswith(b"250 ")
                took.append(time.monotonic() - began)
        # The middle one, as others use this machine too.
        assert sorted(took)[25] < 0.1
        with selectors.DefaultSelector() as answered:
            for client in crowd:
                answered.register(client, selectors.EVENT_READ)
            assert answered.select(0) == [], "nobody of the crowd was answered meanwhile"
        for client in crowd:
            with suppress(OSError):
                client.close()
