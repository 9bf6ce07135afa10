"""The verdict on a sender, from figures and from the real program; senders that are right are not accused."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import socket
import subprocess
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from program import MODULE, Program, children, environment, run, title, wait_for
from test_clients import message, needs, output

from blackhole import report
from blackhole.smtp.state import ACCUSED
from blackhole.smtp.violations import LEVELS, NUMBER, RULES
from blackhole.stats import Snapshot, Stats


def figures(**violations: int) -> Snapshot:
    stats = Stats(1)
    cells = stats.cells(stats.claim())
    for rule, count in violations.items():
        cells[ACCUSED + NUMBER[rule.replace("_", "-")]] = count
    return stats.snapshot()


def test_the_gravest_stands_first() -> None:
    found = report.findings(figures(hello_name=9, bare_lf=2, no_quit=5, talk_after_421=99))
    assert [one.rule.name for one in found] == ["no-quit", "bare-lf", "hello-name", "talk-after-421"]


@pytest.mark.parametrize(
    ("rule", "fails"),
    [("bare_lf", "must should style"), ("hello_name", "should style"), ("talk_after_421", "style")],
)
def test_a_level_counts_those_above_it(rule: str, fails: str) -> None:
    seen = figures(**{rule: 1})
    assert [level for level in ("never", *LEVELS) if report.failed(seen, level)] == fails.split()


def test_the_text_says_what_where_and_what_to_do() -> None:
    said = report.text(figures(bare_lf=2))
    assert "MUST   bare-lf: ended a line with LF alone, 2 times\n" in said
    assert "RFC 5321 2.3.8. Lines end with CR LF" in said
    assert "Nothing was found to be wrong" in report.text(figures())


def test_junit_has_a_case_for_each_rule() -> None:
    suite = ElementTree.fromstring(report.junit(figures(bare_lf=2, nul=1)))
    assert (suite.get("tests"), suite.get("failures")) == (str(len(RULES)), "2")
    assert {case.get("name") for case in suite if len(case)} == {"bare-lf", "nul"}


def test_a_rule_is_well_formed() -> None:
    assert len(NUMBER) == len(RULES)
    for rule in RULES:
        assert rule.level in LEVELS
        assert rule.meaning[0].islower()
        assert not (rule.meaning + rule.hint).endswith(".")


# The real program


def verdict(program: Program, pid: Path) -> list[str]:
    """The rules that were broken so far, once every client is gone."""
    wait_for(lambda: Stats.of(program.pid).snapshot().open == 0, "all have left")
    done = run("report", f"--pid={pid}", "--format=json")
    assert done.returncode == 0, done.stderr
    return [one["rule"] for one in json.loads(done.stdout)["findings"]]


def test_a_report_of_a_running_server(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}", "--workers=2") as program:
        assert verdict(program, pid) == []
        assert run("report", f"--pid={pid}", "--fail_on=must").returncode == 0
        with socket.create_connection(program.address, 20) as client:
            client.recv(4096)
            client.sendall(b"MAIL FROM:<ann@example.com>\n")
            client.recv(4096)
        assert sorted(verdict(program, pid)) == ["bare-lf", "no-hello", "no-quit"]
        done = run("report", f"--pid={pid}", "--fail_on=must")
        assert (done.returncode, "MUST   bare-lf" in done.stdout) == (1, True)
        ElementTree.fromstring(run("report", f"--pid={pid}", "--format=junit").stdout)
        told = json.loads(run("status", f"--pid={pid}", "--json").stdout)
        assert (told["pid"], told["connections"]["total"]) == (program.pid, 1)
        assert "worker 2: pid" in run("status", f"--pid={pid}").stdout
    gone = run("report", f"--pid={pid}")
    assert (gone.returncode, "not running" in gone.stderr) == (7, True)


def test_top_shows_a_line_a_second_until_the_end(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        with subprocess.Popen(
            [*MODULE, "top", f"--pid={pid}"], env=environment(), stdout=subprocess.PIPE, text=True
        ) as top:
            assert top.stdout is not None
            assert "messages/s" in top.stdout.readline()
            assert "open" in top.stdout.readline()
            top.send_signal(signal.SIGINT)
            assert top.wait(20) == 0
        assert program.stop() == 0


def test_progress_in_the_foreground() -> None:
    with Program("--progress") as program:
        wait_for(lambda: "messages/s" in program.output(), "a line")
        assert "blackhole: progress" in [title(child) for child in children(program.pid)]
        assert program.stop() == 0


# Senders that nobody here wrote


@pytest.mark.parametrize("options", [(), ("-d",)], ids=["a connection each", "connections reused"])
def test_smtp_source_is_counted_to_the_message(tmp_path: Path, options: tuple[str, ...]) -> None:
    """HELO with the bare name of the machine is all that is wrong with it, where that has no dot."""
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}", "--workers=2") as program:
        target = f"inet:{program.address[0]}:{program.address[1]}"
        output(needs("smtp-source"), "-s", "10", "-m", "500", "-l", "3000", "-r", "3", *options, target)
        assert set(verdict(program, pid)) <= {"hello-name"}
        seen = Stats.of(program.pid).snapshot()
        assert dict(seen.messages) == {"accepted": 500, "deferred": 0, "rejected": 0}
        assert seen.recipients == 1500
        assert seen.commands["QUIT"] == sum(seen.connections.values())
        assert seen.commands["DATA"] == seen.commands["MAIL"] == 500
        wait_for(
            lambda: Stats.of(program.pid).snapshot().histograms["message_bytes"].count == 500, "the sizes"
        )
        sizes = Stats.of(program.pid).snapshot().histograms["message_bytes"]
        assert 500 * 2900 < sizes.sum < 500 * 3400
        times = Stats.of(program.pid).snapshot().histograms
        # Sampled: some of the 3,500 turns, and never so many that it would cost something.
        assert 0 < times["service_seconds"].count < 1500
        assert 0 < times["client_seconds"].count < 1500


def test_smtplib_is_right(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        with smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20) as client:
            for body in ("Hello\n.\n..\nGoodbye\n", "", 100 * "x" * 70 + "\n"):
                assert client.send_message(message(body)) == {}
        assert verdict(program, pid) == []
        assert Stats.of(program.pid).snapshot().messages["accepted"] == 3


def test_smtplib_says_nothing_of_8_bit(tmp_path: Path) -> None:
    """send_message() leaves text in 8 bit, and does not say BODY=8BITMIME."""
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        with smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20) as client:
            client.send_message(message("Grüße\n"))
        assert verdict(program, pid) == ["8bit-undeclared"]


@pytest.mark.parametrize(
    "how", [(), ("--pipeline",), ("--protocol", "SMTP")], ids=["plain", "pipeline", "helo"]
)
def test_swaks_is_right(tmp_path: Path, how: tuple[str, ...]) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        output(
            needs("swaks"),
            f"--server={program.address[0]}",
            f"--port={program.address[1]}",
            "--from=ann@example.com",
            "--to=bob@example.com,carol@example.com",
            "--helo=client.example.com",
            "--body=Hello\\n.\\nGoodbye",
            *how,
        )
        assert verdict(program, pid) == []


def succeeded(program: Program, victim: int) -> bool:
    workers = program.workers()
    return len(workers) == 2 and victim not in workers


def test_killed_workers_lose_no_message(tmp_path: Path) -> None:
    """What the sender was told is what is counted, though workers are killed while it sends."""
    told = 0
    with Program("--workers=2", f"--pid={tmp_path / 'pid'}") as program:
        for _ in range(6):
            client = smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20)
            for _number in range(20):
                client.sendmail("ann@example.com", ["bob@example.com"], "Hello\r\n")
                told += 1
            victim = next(
                worker.pid
                for worker in Stats.of(program.pid).snapshot().workers
                if worker.open and "worker" in worker.title
            )
            os.kill(victim, signal.SIGKILL)
            client.close()
            wait_for(partial(succeeded, program, victim), "a successor")
        assert Stats.of(program.pid).snapshot().messages["accepted"] == told == 120
