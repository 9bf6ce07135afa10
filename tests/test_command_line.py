"""The actions of the command line against running servers: what they find, say and refuse."""

from __future__ import annotations

import json
import os
import re
import signal
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blackhole import __version__, main
from blackhole.process import configuration, running_servers
from blackhole.process.message_total import MessageTotal
from blackhole.process.shared_state import SharedState
from blackhole.settings import OperatorError, Settings
from tests.external_programs import path_of, requires
from tests.http_api import Sink, ask
from tests.program import Program, free_port, free_ports, run, scenario_option, wait_for
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
        assert (
            f"2 servers are running: pid {program.pid} on 127.0.0.1:{program.port}, pid {os.getpid()};"
            " choose one with --port PORT" in capfd.readouterr().err
        )
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


# Several servers without a pidfile


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Program, Program, str]]:
    """Two servers in the foreground, and the path of the UNIX socket that the second one has too."""
    path = str(tmp_path_factory.mktemp("several") / "socket")
    ports = free_ports(4)
    many = [f"--listen=127.0.0.1:{port}" for port in ports]
    with (
        Program("--workers=1") as first,
        Program(*many, f"--listen=unix:{path}", "--workers=1", "--recent=10") as second,
    ):
        second.port = ports[0]
        yield first, second, path


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        (["--port={first}"], 0),
        (["--port={second}"], 1),
        (["--listen=:{first}"], 0),
        (["--listen=localhost:{second}"], 1),
        (["--listen=unix:{path}"], 1),
        (["--host=127.0.0.1", "--port={first}"], 0),
        (["--listen=:1", "--listen=127.0.0.1:{second},tls=no"], 1),
        (["--host=127.0.0.2", "--port={first}"], None),
        (["--listen=unix:{path}.other"], None),
        (["--port=1"], None),
    ],
)
def test_address_chooses_among_several_servers(
    several: tuple[Program, Program, str],
    options: list[str],
    chosen: int | None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    first, second, path = several
    given = [option.format(first=first.port, second=second.port, path=path) for option in options]
    status = main.main(["status", "--json", *given])
    shown = capfd.readouterr().out
    if chosen is None:
        assert (status, shown) == (main.STATUS_NOT_RUNNING, "Blackhole is not running.\n")
        assert main.main(["report", *given]) == main.NOT_RUNNING
        assert "no server listens at the address that was given; running: " in capfd.readouterr().err
    else:
        assert (status, json.loads(shown)["pid"]) == (0, several[chosen].pid)


def test_every_command_takes_the_address_of_its_server(several: tuple[Program, Program, str]) -> None:
    first, second, _ = several
    for words in (["report"], ["recent"], ["reopen"]):
        assert run(*words, f"--port={second.port}").returncode == 0, words
    assert f"pid {first.pid} keeps no transactions" in run("recent", f"--port={first.port}").stderr
    assert run("reload", f"--port={second.port}").returncode == 0
    wait_for(lambda: "reloaded: " in second.output(), "the reload")
    assert "reloaded: " not in first.output()
    refused = run("reload", f"--port={second.port}", "--mode=bounce")
    assert refused.returncode == os.EX_USAGE
    assert "there mode is accept, not bounce" in refused.stderr


def test_several_servers_are_listed_with_their_addresses(
    several: tuple[Program, Program, str], alone: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = several
    alone += [first.pid, second.pid]
    assert main.main(["top"]) == os.EX_USAGE
    expected = (
        f"blackhole: 2 servers are running: pid {first.pid} on 127.0.0.1:{first.port},"
        f" pid {second.pid} on 127.0.0.1:{second.port} and [^ ]+ and [^ ]+ and 2 more;"
        " choose one with --port PORT or --listen ADDRESS, or by its pidfile with --pid FILE\n"
    )
    assert re.fullmatch(expected, capfd.readouterr().err)
    assert main.main(["report", "--host=127.0.0.1"]) == os.EX_USAGE
    assert "2 servers are running: " in capfd.readouterr().err


def test_pidfile_that_is_named_goes_before_an_address(
    several: tuple[Program, Program, str], tmp_path: Path
) -> None:
    first = several[0]
    pid = tmp_path / "pid"
    for options in ([f"--pid={pid}"], []):
        asked = run("report", *options, f"--port={first.port}", BLACKHOLE_PID=str(pid))
        assert (asked.returncode, asked.stderr) == (main.NOT_RUNNING, f"blackhole: not running ({pid})\n")


def test_command_that_signals_does_not_take_the_only_server(
    several: tuple[Program, Program, str], alone: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    """It could be that of somebody else; how to choose it is said."""
    first = several[0]
    alone.append(first.pid)
    hint = f"running: pid {first.pid} on 127.0.0.1:{first.port}; choose one with --port PORT"
    assert main.main(["reopen"]) == main.NOT_RUNNING
    assert f"not running (/nonexistent/pid); {hint}" in capfd.readouterr().err
    assert main.main(["stop"]) == 0
    assert f"blackhole: {hint}" in capfd.readouterr().err
    assert first.process.poll() is None


def test_server_without_a_pidfile_is_stopped_by_its_port() -> None:
    with Program("--workers=1") as program:
        with SMTPClient(program.address) as client:
            client.command("EHLO client.test")
            stopped = run("stop", f"--port={program.port}")
        assert (stopped.returncode, stopped.stdout) == (0, "Blackhole has stopped.\n")
        assert program.process.poll() is not None or program.process.wait(10) == 0
        again = run("stop", f"--port={program.port}")
        assert (again.returncode, again.stdout) == (0, "Blackhole was not running.\n")


def test_server_that_does_not_stop_is_killed() -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            assert running_servers.stop(other.pid, 0.1)
            assert other.wait(10) == -signal.SIGKILL
            assert not running_servers.stop(other.pid, 0.1)
        finally:
            other.kill()


@pytest.mark.parametrize(
    "facts", [{}, {"listeners": 1}, {"listeners": [{}]}, {"listeners": [{"address": 1}, {"address": "x y"}]}]
)
def test_facts_that_a_worker_has_overwritten_choose_no_server(
    facts: dict[str, object], alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.append(os.getpid())
    monkeypatch.setattr(running_servers.ServerFacts, "of", lambda pid: facts)
    assert running_servers.running_servers() == [(os.getpid(), ())]


@pytest.mark.parametrize(("code", "found"), [(os.EX_UNAVAILABLE, 0), (os.EX_NOPERM, 1)])
def test_server_whose_facts_cannot_be_read_is_listed_while_it_lives(
    code: int, found: int, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> None:
        raise OperatorError("no", code)

    alone.append(os.getpid())
    monkeypatch.setattr(running_servers.ServerFacts, "of", refuse)
    assert [str(one) for one in running_servers.running_servers()] == [f"pid {os.getpid()}"] * found


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
