"""Exact counts: no message is lost or counted twice by reloads, TLS and killed workers."""

from __future__ import annotations

import os
import signal
import smtplib
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.certificates import Certificate
from tests.external_programs import output_of, path_of, requires
from tests.postfix import RECIPIENT, SENDER
from tests.program import Program, wait_for
from tests.violation_checks import checking_program


@requires("smtp-source")
def test_no_message_is_lost_by_reloads_under_load() -> None:
    """smtp-source fails at any unexpected reply; it sends until all workers are replaced."""
    source, sent = path_of("smtp-source"), 0
    with Program("--workers=2") as program:
        old = set(program.workers())
        target = f"inet:{program.address[0]}:{program.address[1]}"
        for reloads in (1, 2):
            os.kill(program.pid, signal.SIGHUP)
            while program.output().count("reloaded: ") < reloads or old.intersection(program.workers()):
                output_of(source, "-s", "10", "-m", "100", "-l", "500", target)
                sent += 100
            old = set(program.workers())
        output_of(source, "-s", "10", "-m", "100", "-l", "500", target)
        snapshot = program.snapshot()
        assert dict(snapshot.messages) == {"accepted": sent + 100, "deferred": 0, "rejected": 0}


def test_messages_over_tls_are_counted_exactly_over_a_reload(certificate: Certificate) -> None:
    """The old worker may close a session after a message, and not before it."""
    sent, sessions = 0, 6
    with checking_program(certificate) as program:
        for number in range(sessions):
            client = smtplib.SMTP(*program.address, local_hostname="client.test", timeout=20)
            client.starttls(context=certificate.client)
            with suppress(smtplib.SMTPException):
                for turn in range(20):
                    client.sendmail(SENDER, [RECIPIENT], "Hello\r\n")
                    sent += 1
                    if (number, turn) == (2, 10):
                        os.kill(program.pid, signal.SIGHUP)
                        wait_for(lambda: "reloaded: " in program.output(), "the reload")
                client.quit()
            client.close()
        program.wait_until_idle()
        snapshot = program.snapshot()
        assert snapshot.messages["accepted"] == sent >= 20 * (sessions - 1) + 11
        assert snapshot.total("tls_ok") == sessions


def replaced(program: Program, victim: int) -> bool:
    workers = program.workers()
    return len(workers) == 2 and victim not in workers


def test_no_counted_message_is_lost_with_a_killed_worker(tmp_path: Path) -> None:
    """Every message that was acknowledged is counted, although workers are killed meanwhile."""
    sent = 0
    with Program("--workers=2", f"--pid={tmp_path / 'pid'}") as program:
        for _ in range(6):
            client = smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20)
            for _number in range(20):
                client.sendmail("ann@example.com", ["bob@example.com"], "Hello\r\n")
                sent += 1
            victim = next(
                worker.pid
                for worker in program.snapshot().processes
                if worker.open and "worker" in worker.title
            )
            os.kill(victim, signal.SIGKILL)
            client.close()
            wait_for(partial(replaced, program, victim), "a replacement")
        assert program.snapshot().messages["accepted"] == sent == 120
