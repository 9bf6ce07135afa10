"""Limiters and attempt counts that all workers of a server share."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.program import Program, descriptors, scenario_option, wait_for
from tests.smtp_client import SMTPClient

ATTEMPTS = "[[rule]]\nphase = 'RCPT'\nattempt = '<= 6'\nreply = '450 4.2.1 Later'\n"


MEMORY = "/memfd:blackhole attempts (deleted)"


@contextmanager
def open_clients(program: Program, count: int) -> Iterator[list[SMTPClient]]:
    """Open connections at the same time, which are spread over all workers."""
    with ExitStack() as stack:
        yield [stack.enter_context(SMTPClient(program.address)) for _ in range(count)]


def four_workers(tmp_path: Path, text: str, *options: str) -> Program:
    """Return the program with four workers and these rules."""
    return Program("--workers=4", scenario_option(tmp_path, text), *options)


def is_admitted(program: Program) -> bool:
    """Return whether another connection is greeted."""
    with SMTPClient(program.address) as client:
        return client.greeting[:3] == "220"


def attempt(program: Program) -> str:
    """Return the code of the reply to a recipient."""
    with SMTPClient(program.address) as client:
        client.command_code("MAIL FROM:<ann@a>")
        return client.command_code("RCPT TO:<bob@b>")


def reload(program: Program) -> None:
    """Send SIGHUP, and wait until the new workers have replaced the old ones."""
    before = program.output().count("reloaded:")
    program.process.send_signal(signal.SIGHUP)
    wait_for(lambda: program.output().count("reloaded:") > before, "the reload")
    wait_for(lambda: len(program.workers()) == 4, "the old workers have left")


def test_attempts_are_counted_over_all_workers(tmp_path: Path) -> None:
    with four_workers(tmp_path, ATTEMPTS) as program:
        with open_clients(program, 12) as clients:
            for client in clients:
                client.command_code("MAIL FROM:<ann@a>")
            codes = [client.command_code("RCPT TO:<bob@b>") for client in clients]
        assert codes == ["450"] * 6 + ["250"] * 6
        assert program.stop() == 0


def test_attempts_survive_a_reload_even_if_it_brings_the_first_rules(tmp_path: Path) -> None:
    """Without rules there is no memory; what the first reload made lives on over the second."""
    file = tmp_path / "rules.toml"
    file.write_text("[[rule]]\nphase = 'RCPT'\nreply = '250 2.1.5 Yes'\n")
    with Program("--workers=4", f"--scenario={file}") as program:
        assert attempt(program) == "250"
        assert MEMORY not in descriptors(program.pid)
        codes = []
        for text in (ATTEMPTS, ATTEMPTS + "# the same again\n"):
            file.write_text(text)
            reload(program)
            codes += [attempt(program) for _ in range(5)]
        assert codes == ["450"] * 6 + ["250"] * 4
        # One for the rules, and one for what comes again.
        assert descriptors(program.pid).count(MEMORY) == 2
        assert program.stop() == 0


QUOTAS = (
    "recipients = 500, per = 'hour'",
    "recipients = 500, per = 'day', window = 'sliding', by = ['network', 'sender']",
    "recipients = 1, per = 'day', burst = 500, by = 'sender-domain'",
)
"""Throttles that let 500 recipients through."""


@pytest.mark.parametrize("quota", QUOTAS)
def test_quota_is_shared_by_all_workers(tmp_path: Path, quota: str) -> None:
    """Sixteen clients that ask as fast as they can: not one too many gets through."""
    text = f"[[rule]]\nthrottle = {{ {quota} }}\nreply = '452 4.5.3 Slow down'\n"
    with four_workers(tmp_path, text) as program:
        with open_clients(program, 16) as clients:
            for client in clients:
                client.command_code("MAIL FROM:<ann@a>")
            for client in clients:
                client.socket.sendall(b"".join(b"RCPT TO:<%d@b>\r\n" % number for number in range(60)))
            codes = Counter(client.read_reply()[:3] for client in clients for _ in range(60))
        assert codes == {"250": 500, "452": 460}
        assert program.stop() == 0


def test_rate_limit_is_shared_by_all_workers(tmp_path: Path) -> None:
    """Clients that never rest, over several periods: each lets through as many as it may."""
    text = "[[rule]]\nthrottle = { recipients = 100, per = '500ms' }\nreply = '452 4.5.3 Slow down'\n"
    with four_workers(tmp_path, text) as program:
        with open_clients(program, 8) as clients:
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


@contextmanager
def stopped_with_the_locks_of(pid: int) -> Iterator[int]:
    """Have a process that is stopped hold all locks of the attempt tables; yield the number of the locks."""
    paths = [
        f"/proc/{pid}/fd/{name}"
        for name in os.listdir(f"/proc/{pid}/fd")
        if os.readlink(f"/proc/{pid}/fd/{name}") == MEMORY
    ]
    child = os.fork()
    if child == 0:
        for path in paths:
            fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    try:
        assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
        yield len(paths)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


UNKNOWN = """
[[rule]]
throttle = { recipients = 4, per = "hour", by = "all" }
reply = "452 4.5.3 Slow down"
when_unknown = "451 4.3.0 Try again later"
[[rule]]
throttle = { concurrent = 90, by = "all" }
reply = "421 4.7.0 Too many"
"""


def test_workers_answer_at_once_while_a_process_is_stopped_with_the_locks(tmp_path: Path) -> None:
    with four_workers(tmp_path, UNKNOWN) as program:
        with open_clients(program, 8) as clients:
            for client in clients:
                client.command_code("MAIL FROM:<ann@a>")
            assert clients[0].command_code("RCPT TO:<bob@b>") == "250"
            with stopped_with_the_locks_of(program.workers()[0]) as locks:
                assert locks == 2
                for client in [*clients, *clients]:
                    began = time.monotonic()
                    assert client.command_code("RCPT TO:<bob@b>") == "451"
                    assert time.monotonic() - began < 0.5
                began = time.monotonic()
                assert attempt(program) == "451"
                assert time.monotonic() - began < 1.0
            assert Counter(client.command_code("RCPT TO:<bob@b>") for client in clients) == {
                "250": 3,
                "452": 5,
            }, "while the number was not known, nothing was counted"
        assert program.stop() == 0


def test_attempts_and_greylists_are_unknown_while_a_process_is_stopped_with_the_locks(tmp_path: Path) -> None:
    text = """
[[rule]]
phase = "RCPT"
recipient = "bob@*"
attempt = "<= 2"
reply = "450 4.2.1 Later"
when_unknown = "451 4.3.0 Try again later"
[[rule]]
phase = "RCPT"
recipient = "carl@*"
greylist = { min = "1ms", max = "1h" }
reply = "450 4.7.1 Greylisted"
when_unknown = "451 4.3.0 Try again later"
"""
    with four_workers(tmp_path, text) as program:
        with open_clients(program, 4) as clients:
            for client in clients:
                client.command_code("MAIL FROM:<ann@a>")
            assert clients[0].command_code("RCPT TO:<bob@b>") == "450"
            with stopped_with_the_locks_of(program.workers()[0]):
                for client in clients:
                    for recipient in ("bob", "carl"):
                        assert client.command_code(f"RCPT TO:<{recipient}@b>") == "451"
            assert [client.command_code("RCPT TO:<bob@b>") for client in clients] == [
                "450",
                "250",
                "250",
                "250",
            ], "while the number was not known, nothing was counted"
            assert clients[0].command_code("RCPT TO:<carl@b>") == "450"
            time.sleep(0.01)
            assert [client.command_code("RCPT TO:<carl@b>") for client in clients] == ["250"] * 4
        assert program.stop() == 0


def test_slot_of_a_message_under_way_at_the_end_of_the_drain_is_free_again(tmp_path: Path) -> None:
    """The worker that a reload has replaced ends with the message still under way."""
    text = "[[rule]]\nthrottle = { concurrent = 1, by = 'all' }\nreply = '421 4.7.0 Too many'\n"
    for harm in (signal.SIGKILL, None):
        with four_workers(tmp_path, text, "--drain_timeout=1") as program:
            old = program.workers()
            with SMTPClient(program.address) as client:
                client.socket.sendall(b"HELO a.test\r\nMAIL FROM:<ann@a>\r\nRCPT TO:<b@b>\r\nDATA\r\n")
                assert [client.read_reply()[:3] for _ in range(4)] == ["250", "250", "250", "354"]
                before = program.output().count("reloaded:")
                program.process.send_signal(signal.SIGHUP)
                wait_for(lambda before=before: program.output().count("reloaded:") > before, "the reload")  # type: ignore[misc]
                if harm is not None:
                    for pid in {*old} & {*program.workers()}:
                        os.kill(pid, harm)
                wait_for(lambda old=old: not {*old} & {*program.workers()}, "the old workers have left")  # type: ignore[misc]
                wait_for(lambda program=program: is_admitted(program), "the slot is free")  # type: ignore[misc]
            assert program.stop() == 0


def test_concurrency_slots_are_shared_by_all_workers_and_freed_when_one_is_killed(tmp_path: Path) -> None:
    text = "[[rule]]\nthrottle = { concurrent = 8 }\nreply = '421 4.7.0 Too many'\n"
    with four_workers(tmp_path, text) as program:

        def slots_are_free() -> bool:
            with open_clients(program, 9) as clients:
                return Counter(client.greeting[:3] for client in clients) == {"220": 8, "421": 1}

        with open_clients(program, 10) as clients:
            assert Counter(client.greeting[:3] for client in clients) == {"220": 8, "421": 2}
            assert not is_admitted(program)
            clients[0].command_code("QUIT")
            wait_for(lambda: is_admitted(program), "there is room again")
            killed = program.workers()[0]
            os.kill(killed, signal.SIGKILL)
            wait_for(lambda: killed not in program.workers() and len(program.workers()) == 4, "a new worker")
        wait_for(slots_are_free, "all have left, those of the killed one too")
        assert program.stop() == 0


KEPT = ("deferral=0", "blocked=0", "unknown=0", "spam=0")


def send_messages(program: Program, count: int, of_a_connection: int) -> Counter[str]:
    """Send messages one after another, some in each connection; return the codes of the replies to MAIL."""
    codes: Counter[str] = Counter()
    while count > 0:
        with SMTPClient(program.address) as client:
            for _ in range(min(count, of_a_connection)):
                count -= 1
                code = client.command_code(f"MAIL FROM:<{count}@client.test>")
                codes[code] += 1
                if code != "250":
                    break
                assert client.command_code(f"RCPT TO:<{count}@example.com>") == "250"
                assert client.command_code("DATA") == "354"
                client.send(b"Subject: hello\r\n\r\nhello\r\n.\r\n")
                assert client.read_reply()[:3] == "250"
    return codes


@pytest.mark.parametrize("workers", [1, 4])
def test_limit_of_a_provider_is_exact_with_any_number_of_workers(workers: int) -> None:
    """300 messages of a client in half an hour, and 15 in a connection."""
    shares = [f"--set={share}" for share in KEPT]
    with Program(f"--workers={workers}", "--scenario=profile:barracuda", *shares) as program:
        assert send_messages(program, 300, 15) == {"250": 300}
        assert send_messages(program, 30, 1) == {"421": 30}
        assert program.stop() == 0
