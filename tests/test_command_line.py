"""The actions of the command line against running servers: what they find, say and refuse."""

from __future__ import annotations

import json
import os
import re
import signal
import smtplib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blackhole import __version__, main
from blackhole.process import configuration
from blackhole.process.message_total import MessageTotal
from blackhole.process.shared_state import SharedState
from blackhole.settings import Settings
from tests.external_programs import path_of, requires
from tests.http_api import Sink, ask
from tests.program import Program, free_port, run, scenario_option, wait_for
from tests.smtp_client import SMTPClient

SCENARIO = '[[rule]]\nphase = "RCPT"\nrecipient = "full@*"\nreply = "552 5.2.2 Full"\n'


# status


def test_status_tells_version_addresses_mode_scenario_dashboard_and_figures(tmp_path: Path) -> None:
    pid, port = tmp_path / "pid", free_port()
    rules = scenario_option(tmp_path, SCENARIO)
    listen = f"--listen=127.0.0.1:{port},mode=bounce"
    with Sink(f"--pid={pid}", rules, listen, "--workers=1") as program:
        lines = run("status", f"--pid={pid}").stdout.splitlines()
        assert lines[0] == f"Blackhole {__version__} is running, pid {program.pid}."
        assert f"listening on 127.0.0.1:{port}, mode bounce, 1 rule, 1 worker, no TLS" in lines
        assert f"scenario {tmp_path / 'rules.toml'}" in lines
        assert f"dashboard on http://127.0.0.1:{program.http}/" in lines
        shown = json.loads(run("status", "--json", f"--pid={pid}").stdout)
        assert shown["version"] == __version__
        (listener,) = shown["listeners"]
        expected = {"address": f"127.0.0.1:{port}", "mode": "bounce", "delay": None, "tls": "off"}
        assert listener | expected | {"proxy": False, "service": "smtp"} == listener
        assert shown["scenario"] == [str(tmp_path / "rules.toml")]
        assert (shown["rules"], shown["runtime_scenario"], shown["one_shot_replies"]) == (1, None, 0)
        assert shown["dashboard"] == f"http://127.0.0.1:{program.http}/"
        assert shown["messages"] == {"accepted": 0, "deferred": 0, "rejected": 0}


def test_status_tells_what_was_set_at_run_time(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Sink(f"--pid={pid}", "--workers=1") as program:
        program.dashboard()
        assert "no scenario" in run("status", f"--pid={pid}").stdout
        assert ask(program.http, "/scenario", "PUT", SCENARIO).status == 200
        body = json.dumps({"phase": "RCPT", "reply": "450 4.2.1 Later", "count": 3})
        assert ask(program.http, "/next", "POST", body).status in (200, 201)
        text = run("status", f"--pid={pid}").stdout
        assert ", set at run time in place of none\n" in text
        assert "set at run time: 3 one-shot replies\n" in text


def test_status_of_a_reloaded_server_is_that_of_its_new_configuration(tmp_path: Path) -> None:
    pid, conf, port = tmp_path / "pid", tmp_path / "conf", free_port()
    conf.write_text(f"listen = 127.0.0.1:{port}\nworkers = 1\npid = {pid}\n")
    with Program(f"--conf={conf}") as program:
        conf.write_text(f"listen = 127.0.0.1:{port},mode=random\nworkers = 1\npid = {pid}\n")
        assert run("reload", f"--conf={conf}").returncode == 0
        wait_for(lambda: "reloaded: " in program.output(), "the reload")
        assert f"127.0.0.1:{port}, mode random, 1 worker" in run("status", f"--conf={conf}").stdout


def test_figures_have_separators(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}", "--workers=1") as program:
        with smtplib.SMTP(*program.address) as client:
            client.sendmail("a@example.com", ["b@example.com"] * 1100, f"{'x' * 70}\r\n" * 30_000)
        program.wait_until_idle()
        text = wait_for(
            lambda: "2,1" in (text := run("status", f"--pid={pid}").stdout) and text, "the octets are counted"
        )
        assert "1 message (1 accepted, 0 deferred, 0 rejected), 1,100 recipients\n" in text


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let the program see only the masters in this list: other tests run some at the same time."""
    masters: list[int] = []
    monkeypatch.setattr(main.pidfile, "running_masters", lambda: masters)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    monkeypatch.setattr(main.options, "_PIDFILE", ("/nonexistent/pid", "XDG_NONE", "/nonexistent/pid"))
    yield masters


def test_status_and_report_find_a_server_in_the_foreground(
    alone: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["status"]) == main.STATUS_NOT_RUNNING
    with Program("--workers=1") as program:
        alone.append(program.pid)
        capfd.readouterr()
        assert main.main(["status"]) == 0
        assert capfd.readouterr().out.startswith(f"Blackhole {__version__} is running, pid {program.pid}.\n")
        assert main.main(["report"]) == 0
        alone.append(os.getpid())
        assert main.main(["status"]) == os.EX_USAGE
        assert f"2 servers are running (pids {program.pid}, {os.getpid()})" in capfd.readouterr().err
        assert main.main(["status", "--pid=/nonexistent/other"]) == main.STATUS_NOT_RUNNING


def test_dead_server_with_a_pidfile_is_not_hidden_by_another_in_the_foreground(
    alone: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / "pid"
    stale.write_text("4194305\n")
    (tmp_path / "pid.lock").write_text("4194305 1 1.0\n")
    monkeypatch.setattr(main.options, "_PIDFILE", (str(stale), "XDG_NONE", str(stale)))
    alone.append(os.getpid())
    assert main.main(["status"]) == main.STATUS_DEAD_WITH_PIDFILE


# start and reload


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[list[str]]:
    """Start a server in the background, and return its options."""
    options = [f"--pid={tmp_path / 'pid'}", f"--log={tmp_path / 'log'}", "--host=127.0.0.1"]
    options += [f"--port={free_port()}", "--workers=1"]
    assert run("start", *options).returncode == 0
    yield options
    run("stop", *options, "--drain-timeout=0")


def test_start_while_one_runs_succeeds_with_the_same_options_only(daemon: list[str]) -> None:
    assert run("start", *daemon).returncode == 0
    other = run("start", *daemon, "--mode=bounce", "--timeout=5m")
    assert other.returncode == os.EX_TEMPFAIL
    assert other.stderr.startswith("blackhole: already running, pid ")
    assert other.stderr.endswith(", with other options: mode is accept, not bounce\n")
    fewer = run("start", *daemon[:2])
    assert fewer.returncode == os.EX_TEMPFAIL
    assert "host is 127.0.0.1, not 0.0.0.0; port is " in fewer.stderr


def test_reload_says_that_it_takes_no_options_but_those_of_the_server(daemon: list[str]) -> None:
    refused = run("reload", *daemon, "--mode", "bounce")
    assert refused.returncode == os.EX_USAGE
    assert refused.stderr == (
        "blackhole: reload takes no options: the server reads its own command line and conf file again,"
        " and there mode is accept, not bounce; change the conf file, or restart\n"
    )
    assert run("reload", *daemon).returncode == 0
    assert run("reload", daemon[0]).returncode == 0


# What the log says of signals


def test_stop_reopen_and_workers_added_and_removed_are_logged(daemon: list[str]) -> None:
    log = Path(daemon[1].partition("=")[2])
    pid = int(Path(daemon[0].partition("=")[2]).read_text())
    for number, line in (
        (signal.SIGTTIN, "one worker more: 2 until the next reload"),
        (signal.SIGTTOU, "one worker less: 1 until the next reload"),
        (signal.SIGUSR1, "log opened again"),
    ):
        os.kill(pid, number)
        wait_for(lambda line=line: f"master INFO {line}\n" in log.read_text(), line)  # type: ignore[misc]
    assert run("stop", *daemon).returncode == 0
    text = log.read_text()
    assert "master INFO stopping: open sessions have 30 s to finish\n" in text
    assert "master INFO stopped\n" in text
    assert "master INFO 0 messages (0 accepted, 0 deferred, 0 rejected), 0 recipients in " in text


# --stop-after


def test_server_stops_after_so_many_messages_and_tells_its_figures() -> None:
    with Program("--stop-after=5", "--workers=1") as program:
        with smtplib.SMTP(*program.address) as client:
            for _ in range(5):
                client.sendmail("a@example.com", "b@example.com", "hello")
            with pytest.raises(smtplib.SMTPServerDisconnected):
                client.rset()
                client.rset()
        assert program.process.wait(10) == 0
        assert (
            "\nblackhole: 5 messages (5 accepted, 0 deferred, 0 rejected), 5 recipients in "
            in program.output()
        )


@requires("smtp-source")
@pytest.mark.parametrize("options", [("-d",), ()], ids=["reused connections", "a connection a message"])
def test_many_senders_overshoot_by_what_is_under_way_at_most(options: tuple[str, ...]) -> None:
    senders, wanted = 20, 1000
    with Program(f"--stop-after={wanted}", "--workers=2") as program:
        source = subprocess.Popen(
            [
                *(path_of("smtp-source"), *options, "-s", str(senders), "-m", "100000"),
                *("-f", "a@example.com", "-t", "b@example.com", f"inet:127.0.0.1:{program.port}"),
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            assert program.process.wait(60) == 0
        finally:
            source.kill()
            source.wait()
        found = re.search(r"\nblackhole: ([\d,]+) messages \(", program.output())
        assert found is not None
        assert wanted <= int(found[1].replace(",", "")) <= wanted + senders + 2


def test_message_under_way_is_finished_and_refused_messages_count() -> None:
    with Program("--stop-after=1", "--mode=bounce", "--workers=1") as program:
        with SMTPClient(program.address) as slow, SMTPClient(program.address) as fast:
            for client in (slow, fast):
                for line in ("EHLO client.test", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>"):
                    assert client.command_code(line) == "250"
                assert client.command_code("DATA") == "354"
            assert fast.command_code(".")[0] in "45"
            wait_for(lambda: "INFO stopping: " in program.output(), "the server stops")
            assert slow.command_code(".")[0] in "45"
        assert program.process.wait(10) == 0
        assert "\nblackhole: 2 messages (0 accepted, " in program.output()


def test_without_stop_after_nothing_is_counted_for_it() -> None:
    counted: list[MessageTotal | None] = []
    shared = SharedState(4)
    shared.prepare(configuration.load(Settings(), print))
    counted.append(shared.messages)
    shared.prepare(configuration.load(Settings(stop_after=3), print))
    counted.append(shared.messages)
    assert counted[0] is None and counted[1] is not None
