"""Limiters and attempt counts that all workers of a server share."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

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


def test_quota_is_shared_by_all_workers(tmp_path: Path) -> None:
    """Sixteen clients that ask as fast as they can: not one too many gets through."""
    text = "[[rule]]\nthrottle = { recipients = 500, per = 'hour' }\nreply = '452 4.5.3 Slow down'\n"
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


def test_concurrency_slots_are_shared_by_all_workers_and_freed_when_one_is_killed(tmp_path: Path) -> None:
    text = "[[rule]]\nthrottle = { concurrent = 8 }\nreply = '421 4.7.0 Too many'\n"
    with four_workers(tmp_path, text) as program:

        def next_one() -> bool:
            with SMTPClient(program.address) as client:
                return client.greeting[:3] == "220"

        def slots_are_free() -> bool:
            with open_clients(program, 9) as clients:
                return Counter(client.greeting[:3] for client in clients) == {"220": 8, "421": 1}

        with open_clients(program, 10) as clients:
            assert Counter(client.greeting[:3] for client in clients) == {"220": 8, "421": 2}
            assert not next_one()
            clients[0].command_code("QUIT")
            wait_for(next_one, "there is room again")
            killed = program.workers()[0]
            os.kill(killed, signal.SIGKILL)
            wait_for(lambda: killed not in program.workers() and len(program.workers()) == 4, "a new worker")
        wait_for(slots_are_free, "all have left, those of the killed one too")
        assert program.stop() == 0
