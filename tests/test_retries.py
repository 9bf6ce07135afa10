"""Retries that all workers of a server see, of clients of our own and of real mail software."""

from __future__ import annotations

import json
import smtplib
import subprocess
from pathlib import Path

from blackhole.metrics import report
from tests.external_programs import path_of, requires
from tests.http_api import Sink, ask, post
from tests.postfix import QUICK_RETRIES, SENDER, Postfix, requires_postfix
from tests.program import Program, run, scenario_option, wait_for


def retries(program: Program, pid: Path) -> dict[str, dict[str, int]]:
    """What the program tells of them, once every client is gone."""
    program.wait_until_idle()
    done = run("report", f"--pid={pid}", "--format=json")
    assert done.returncode == 0, done.stderr
    told: dict[str, dict[str, int]] = json.loads(done.stdout)["retries"]
    return told


def test_retries_are_tracked_over_all_workers(tmp_path: Path) -> None:
    """In connections that go to any of four workers, over a reload too."""
    text = "".join(
        f"[[rule]]\nphase = '.'\nattempt = 1\nrecipient = '{name}@*'\n{what}\n"
        for name, what in (
            ("before", "then = 'close-before-reply'"),
            ("within", "then = 'half-reply'"),
            ("after", "then = 'close-after-reply'"),
            ("late", "delay = 5"),
            ("no", "reply = '554 5.0.0 No'"),
        )
    )
    pid = tmp_path / "pid"
    with Sink(f"--pid={pid}", "--workers=4", scenario_option(tmp_path, text)) as program:
        program.dashboard()
        for turn in ("first", "second"):
            assert post(program.http, "/runs", {"name": turn}).status == 201
            for name in ("before", "within", "after", "late", "no"):
                client = smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20)
                client.ehlo()
                client.mail(SENDER)
                client.rcpt(f"{name}@example.com")
                client.docmd("DATA")
                client.send(f"Message-ID: <{name}@client>\r\n\r\nHello\r\n.\r\n".encode())
                if name != "late":
                    assert client.sock is not None
                    client.sock.recv(1000)
                client.close()
        told = retries(program, pid)
        assert told["uncertain"] == {
            name: {"messages": 1, "returned": 1} for name in ("before", "within", "after", "late")
        }
        assert told["refused"] == {"recipients": 1, "returned": 1}
        for path in ("/report?format=json", "/runs/second/report?format=json", "/stats.json"):
            over_http = json.loads(ask(program.http, path).body)["retries"]
            assert {
                name: over_http["uncertain"][name]["returned"] for name in told["uncertain"]
            } == dict.fromkeys(told["uncertain"], 1), path
        exposition = ask(program.http, "/metrics").body.decode()
        assert 'blackhole_retried_uncertain_outcomes_total{outcome="closed_within_reply"} 1.0' in exposition


# Senders that nobody here wrote


@requires("smtp-source", "swaks")
def test_new_message_of_smtp_source_or_swaks_is_no_retry(tmp_path: Path) -> None:
    """They give up when they are put off or refused. The next run has come again, and is not to blame."""
    pid = tmp_path / "pid"
    refuse = "[[rule]]\nphase = '.'\nrecipient = '{}*'\nreply = '{} No'\n"
    text = refuse.format("later", "450 4.2.1") + refuse.format("no", "550 5.1.1")
    with Program(f"--pid={pid}", scenario_option(tmp_path, text)) as program:
        host, port = program.address
        senders = (
            (path_of("smtp-source"), "-M", "client.test", "-f", SENDER, "-t", "{}@source", f"{host}:{port}"),
            (
                path_of("swaks"),
                f"--server={host}:{port}",
                f"--from={SENDER}",
                "--helo=client.test",
                "--to={}@swaks",
            ),
        )
        for command in senders * 2:
            for name in ("later", "no", "yes"):
                filled = [word.format(name) for word in command]
                subprocess.run(filled, capture_output=True, timeout=60, check=False)
        told = retries(program, pid)
        assert (told["deferred"]["recipients"], told["deferred"]["returned"]) == (2, 2)
        assert told["refused"] == {"recipients": 2, "returned": 2}
        assert {one.rule.name for one in report.findings(program.snapshot())} <= {"no-quit"}


@requires_postfix
def test_postfix_retries_deferred_mail_after_a_pause(tmp_path: Path, postfix_folder: Path) -> None:
    """Greylisted: it is accused of nothing, though its timers are turned down."""
    pid = tmp_path / "pid"
    greylist = scenario_option(postfix_folder, "[[rule]]\ngreylist = { min = '3s', max = '1h' }\n")
    with (
        Program(f"--pid={pid}", "--hostname=mx.test", greylist) as program,
        Postfix(postfix_folder, program.address, more=QUICK_RETRIES) as postfix,
    ):
        for number in range(3):
            postfix.send("Subject: a test\n\n", f"bob{number}@example.com")
        wait_for(lambda: postfix.has_delivered(3), "Postfix has delivered all", 60)
        told = retries(program, pid)["deferred"]
        assert (told["recipients"], told["returned"], told["missing"], told["taken"]) == (3, 3, 0, 3)
        put_off = [one for one in postfix.delivery_results() if "deferred" in one]
        assert told["again"] == len(put_off) - 3
        assert sum(told["waits"].values()) == len(put_off)
        assert [one.rule.name for one in report.findings(program.snapshot())] == []
        said = run("report", f"--pid={pid}").stdout
        assert "deferred with 4xx: 3 recipients; 3 retried, 0 not yet, 3 accepted in the end" in said


@requires_postfix
def test_postfix_sends_messages_with_an_uncertain_outcome_again(tmp_path: Path, postfix_folder: Path) -> None:
    """What was closed behind the 250 it takes for delivered; all else it sends again, once."""
    text = "".join(
        f"[[rule]]\nphase = '.'\nattempt = 1\nrecipient = '{name}@*'\n{what}\n"
        for name, what in (
            ("before", "then = 'close-before-reply'"),
            ("within", "then = 'half-reply'"),
            ("after", "then = 'close-after-reply'"),
            ("late", "delay = 5"),
            ("later", "reply = '451 4.3.0 Later'"),
            ("no", "reply = '554 5.0.0 No'"),
        )
    )
    pid = tmp_path / "pid"
    hasty = f"{QUICK_RETRIES}smtp_data_done_timeout = 2s\n"
    with (
        Program(f"--pid={pid}", "--hostname=mx.test", scenario_option(postfix_folder, text)) as program,
        Postfix(postfix_folder, program.address, more=hasty) as postfix,
    ):
        for name in ("before", "within", "after", "late", "later", "no"):
            postfix.send(f"Subject: {name}\n\n", f"{name}@example.com")
        wait_for(lambda: postfix.has_delivered(6), "Postfix has delivered all, and a bounce", 60)
        told = retries(program, pid)
        assert told["uncertain"] == {
            "before": {"messages": 1, "returned": 1},
            "within": {"messages": 1, "returned": 1},
            "after": {"messages": 1, "returned": 0},
            "late": {"messages": 1, "returned": 1},
        }
        assert told["refused"] == {"recipients": 1, "returned": 0}
        assert (told["deferred"]["recipients"], told["deferred"]["taken"]) == (1, 1)
        assert [one.rule.name for one in report.findings(program.snapshot())] == []
