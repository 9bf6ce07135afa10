"""The whole program as an operator meets it: forked processes, signals, pidfiles, exit codes."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trustme
from conftest import Certificate
from program import (
    MODULE,
    NOBODY,
    PYTHON,
    READY,
    SCRIPT,
    Program,
    alive,
    as_root,
    children,
    descriptors,
    environment,
    free_port,
    run,
    state,
    status,
    title,
    wait_for,
)

from blackhole import __version__, main, options
from blackhole.process import privileges


def greeting(port: int, timeout: float = 10.0) -> str:
    """What a client hears first; empty when nobody listens, or stops to before it was taken."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout) as client, client.makefile("rb") as said:
            return said.readline().decode().strip()
    except (ConnectionRefusedError, ConnectionResetError):
        return ""


def listens(port: int) -> bool:
    return greeting(port).startswith("220 ")


@contextmanager
def sending(port: int) -> Iterator[smtplib.SMTP]:
    """A client in the middle of a message."""
    client = smtplib.SMTP("127.0.0.1", port, timeout=20)
    try:
        assert client.docmd("DATA")[0] == 354
        yield client
    finally:
        client.close()


# In the foreground


@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["bin/blackhole", "python -m blackhole"])
def test_a_newcomer_sees_what_runs_and_how_to_stop_it(command: tuple[str, ...]) -> None:
    with Program(command=command) as program:
        where, how = program.output().splitlines()
        address = f"127.0.0.1:{program.port}"
        assert where == f"blackhole {__version__}: listening on {address}, mode accept, 2 workers, no TLS"
        assert how == "Ctrl-C stops it. All mail is thrown away."
        assert title(program.pid) == "blackhole: master"
        assert [title(pid) for pid in program.workers()] == ["blackhole: worker 1", "blackhole: worker 2"]
        with smtplib.SMTP("127.0.0.1", program.port) as client:
            assert client.sendmail("a@example.com", "b@example.com", "hello") == {}


def test_ctrl_c_is_quick_and_quiet() -> None:
    with Program() as program, socket.create_connection(program.address) as client:
        client.recv(999)
        workers, before = program.workers(), program.output()
        began = time.monotonic()
        program.interrupt()
        assert program.process.wait(20) == 0
        assert time.monotonic() - began < 10, "it waits for no client, which might take half a minute"
        assert program.output() == before
        assert not any(map(alive, workers))


def test_every_listener_has_its_line(certificate: Certificate) -> None:
    ports = [free_port() for _ in range(3)]
    with Program(
        f"--listen=127.0.0.1:{ports[0]}",
        f"--listen=127.0.0.1:{ports[1]},mode=bounce,delay=0.1,0.2",
        f"--listen=127.0.0.1:{ports[2]},tls",
        f"--ssl_cert={certificate.cert}",
        f"--ssl_key={certificate.key}",
        "--workers=1",
    ) as program:
        lines = program.output().splitlines()
        assert [line.partition("listening on 127.0.0.1:")[2] for line in lines[:-1]] == [
            f"{ports[0]}, mode accept, 1 worker, STARTTLS",
            f"{ports[1]}, mode bounce, delay 0.1 to 0.2 s, 1 worker, STARTTLS",
            f"{ports[2]}, mode accept, 1 worker, TLS",
        ]
        with smtplib.SMTP_SSL("127.0.0.1", ports[2], context=certificate.client) as client:
            assert client.ehlo()[0] == 250


def test_a_port_of_the_kernels_choice_is_told() -> None:
    with Program("--listen=127.0.0.1:0") as program:
        port = re.search(r"127\.0\.0\.1:(\d+)", program.output())
        assert port is not None
        assert listens(int(port[1]))


def test_the_master_has_no_event_loop_no_thread_and_no_zombie() -> None:
    with Program() as program:
        os.kill(program.workers()[0], signal.SIGKILL)
        wait_for(lambda: "was killed by signal 9 (Killed)" in program.output(), "the worker was buried")
        wait_for(lambda: len(program.workers()) == 2, "and replaced")
        assert "anon_inode:[eventpoll]" not in descriptors(program.pid)
        assert status(program.pid)["Threads"] == "1"
        assert not any(state(pid) == "Z" for pid in children(program.pid))


def test_asking_needs_neither_tornado_nor_ssl() -> None:
    code = "import sys, blackhole.main; print({'asyncio', 'ssl', 'tornado', 'daemon'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], env=environment(), text=True) == "set()\n"


# Deaths


def test_a_worker_killed_is_replaced_and_nobody_waits_in_vain() -> None:
    with Program("--workers=2") as program:
        for _ in range(3):
            os.kill(program.workers()[0], signal.SIGKILL)
            for _ in range(20):
                assert listens(program.port)
            wait_for(lambda: len(program.workers()) == 2, "a new worker", timeout=5.0)


def test_without_its_master_no_worker_stays(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        workers = program.workers()
        program.process.kill()
        program.process.wait()
        wait_for(lambda: greeting(program.port) == "", "nobody listens", timeout=3.0)
        wait_for(lambda: not any(map(alive, workers)), "the workers have left")
        done = run("status", f"--pid={pid}")
        assert (done.returncode, done.stdout) == (1, f"Blackhole is not running; it died and left {pid}.\n")


def test_a_master_that_died_lets_its_sessions_finish_but_not_keep_the_lock(tmp_path: Path) -> None:
    options = f"--pid={tmp_path / 'pid'}", f"--port={free_port()}"
    with Program(*options) as first, sending(first.port) as client:
        first.process.kill()
        first.process.wait()
        wait_for(lambda: greeting(first.port) == "", "nobody listens", timeout=3.0)
        with Program(*options):
            client.send(b"still here\r\n.\r\n")
            assert client.getreply()[0] == 250


# Stopping


def test_term_lets_a_message_come_to_its_end() -> None:
    with (
        Program() as program,
        sending(program.port) as busy,
        socket.create_connection(program.address, 10) as idle,
    ):
        assert idle.recv(999).startswith(b"220 ")
        program.process.terminate()
        assert idle.recv(999).startswith(b"421 ")
        wait_for(lambda: greeting(program.port) == "", "nobody listens", timeout=3.0)
        assert program.process.poll() is None
        busy.send(b"the end\r\n.\r\n")
        assert busy.getreply()[0] == 250
        assert program.process.wait(10) == 0


def test_term_twice_waits_for_nobody() -> None:
    with Program("--drain_timeout=60") as program, sending(program.port):
        program.process.terminate()
        wait_for(lambda: greeting(program.port) == "", "nobody listens", timeout=3.0)
        assert program.stop(signal.SIGTERM, timeout=5.0) == 0


def test_the_pidfile_goes_with_the_program(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        assert pid.read_text() == f"{program.pid}\n"
        assert not any(str(pid) in descriptors(worker) for worker in program.workers())
        assert program.stop() == 0
        assert not pid.exists()


# Signals


def test_usr1_opens_a_rotated_log_again() -> None:
    with TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # workers are somebody else
        log = Path(directory) / "log"
        with Program(f"--log={log}") as program:
            log.rename(f"{log}.1")
            program.process.send_signal(signal.SIGUSR1)
            wait_for(log.exists, "a new log")
            for pid in (program.pid, *program.workers()):
                wait_for(partial(lambda pid: str(log) in descriptors(pid), pid), f"{title(pid)} opened it")
            assert "listening on" in Path(f"{log}.1").read_text()


def test_one_worker_more_and_one_less() -> None:
    with Program() as program:
        program.process.send_signal(signal.SIGTTIN)
        wait_for(lambda: len(program.workers()) == 3, "a third")
        program.process.send_signal(signal.SIGTTOU)
        wait_for(lambda: len(program.workers()) == 2, "two again")


# Reload


@pytest.fixture
def conf(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "blackhole.conf"
    path.write_text(f"listen = 127.0.0.1:{free_port()}\nworkers = 1\n")
    yield path


def listen(conf: Path, *ports: int) -> None:
    conf.write_text("".join(f"listen = 127.0.0.1:{port}\n" for port in ports) + "workers = 1\n")


def test_hup_opens_new_ports_and_closes_old_ones(conf: Path) -> None:
    kept, old, new = (free_port() for _ in range(3))
    listen(conf, kept, old)
    with Program(f"--conf={conf}") as program:
        with socket.create_connection(("127.0.0.1", old)) as client:
            assert client.recv(999).startswith(b"220 ")
            (worker,) = program.workers()
            listen(conf, kept, new)
            program.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "reloaded: listening on" in program.output(), "the reload")
            wait_for(lambda: greeting(old) == "", "the old port is closed")
            assert listens(kept)
            assert listens(new)
        wait_for(lambda: len(program.workers()) == 1 and worker not in program.workers(), "a new worker")


def test_hup_loses_no_connection() -> None:
    with Program() as program:
        for _ in range(5):
            program.process.send_signal(signal.SIGHUP)
            for _ in range(20):
                assert listens(program.port)
        wait_for(lambda: len(program.workers()) == 2, "two workers")


@pytest.mark.parametrize("fault", ["por = 25", "port = none", "ssl_cert = /none"])
def test_a_bad_configuration_changes_nothing(conf: Path, tmp_path: Path, fault: str) -> None:
    options = f"--conf={conf}", f"--pid={tmp_path / 'pid'}"
    with Program(*options) as program:
        workers, good = program.workers(), conf.read_text()
        conf.write_text(f"{good}{fault}\n")
        program.process.send_signal(signal.SIGHUP)
        wait_for(
            lambda: "ERROR reload failed, nothing has changed: " in program.output(),
            "one error",
        )
        done = run("reload", *options)
        assert (done.returncode, len(done.stderr.splitlines())) == (os.EX_CONFIG, 1)
        assert program.workers() == workers
        assert program.output().count("reload failed") == 1
        conf.write_text(good)
        assert run("reload", *options).returncode == 0
        wait_for(lambda: "reloaded: listening on" in program.output(), "the reload")


def test_a_port_that_is_taken_changes_nothing(conf: Path) -> None:
    with Program(f"--conf={conf}") as program, socket.create_server(("127.0.0.1", 0)) as other:
        workers, opened = program.workers(), len(descriptors(program.pid))
        free = free_port()
        listen(conf, free, other.getsockname()[1])
        program.process.send_signal(signal.SIGHUP)
        wait_for(
            lambda: "ERROR reload failed, nothing has changed: " in program.output(),
            "one error",
        )
        assert program.workers() == workers
        assert greeting(free) == ""
        assert len(descriptors(program.pid)) == opened


def test_a_new_certificate_is_used_after_a_reload(tmp_path: Path) -> None:
    cert, key, port = tmp_path / "cert.pem", tmp_path / "key.pem", free_port()

    def issue() -> ssl.SSLContext:
        """A new pair in the files of the old one, and who believes it."""
        authority, trusting = trustme.CA(), ssl.create_default_context()
        authority.configure_trust(trusting)
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(str(key))
        issued.cert_chain_pems[0].write_to_path(str(cert))
        key.chmod(0o600)  # the workers could not read it
        return trusting

    first = issue()
    with Program(f"--listen=127.0.0.1:{port},tls", f"--ssl_cert={cert}", f"--ssl_key={key}") as program:
        smtplib.SMTP_SSL("127.0.0.1", port, context=first).quit()
        second, old = issue(), program.workers()
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: not any(map(alive, old)), "the old workers have left")
        smtplib.SMTP_SSL("127.0.0.1", port, context=second).quit()


def test_a_reload_lets_a_client_go_on_that_has_only_said_hello(tmp_path: Path) -> None:
    with Program() as program, smtplib.SMTP(*program.address) as client:
        client.ehlo()
        old = program.workers()
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reloaded: " in program.output(), "the reload")
        assert client.sendmail("ann@example.com", "bob@example.com", "hello") == {}
        client.quit()
        wait_for(lambda: not any(map(alive, old)), "the old workers have left")


def test_after_a_reload_nobody_stays_for_ever(tmp_path: Path) -> None:
    with Program("--drain_timeout=1") as program, smtplib.SMTP(*program.address) as client:
        program.process.send_signal(signal.SIGHUP)
        assert client.sock is not None
        assert client.sock.recv(100) == b"421 4.3.2 Server is stopping, try again later\r\n"


def test_what_a_reload_cannot_change_is_said(conf: Path, tmp_path: Path) -> None:
    with Program(f"--conf={conf}") as program:
        conf.write_text(f"{conf.read_text()}log = {tmp_path / 'other'}\npid = {tmp_path / 'pid'}\n")
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reloaded: " in program.output(), "the reload")
        assert "WARNING log stays as it is until the next start" in program.output()
        assert "WARNING pid stays as it is until the next start" in program.output()
        assert not (tmp_path / "other").exists()
        assert not (tmp_path / "pid").exists()


# Detached


class Detached:
    """Options for a server in the background, which is stopped in the end whatever happens."""

    def __init__(self, tmp_path: Path) -> None:
        self.pid, self.log, self.port = tmp_path / "pid", tmp_path / "log", free_port()
        self.options = [f"--pid={self.pid}", f"--log={self.log}", f"--port={self.port}", "--host=127.0.0.1"]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return run(*words, *self.options, "--workers=2")

    def number(self) -> int:
        return int(self.pid.read_text())


@pytest.fixture
def detached(tmp_path: Path) -> Iterator[Detached]:
    server = Detached(tmp_path)
    yield server
    run("stop", *server.options, "--drain_timeout=0")


def test_start_status_reload_restart_stop(detached: Detached) -> None:
    assert detached.run("status").returncode == 3
    assert detached.run("reload").returncode == main.NOT_RUNNING
    assert detached.run("stop").returncode == 0

    started = detached.run("start")
    assert started.returncode == 0, started.stderr
    assert f"listening on 127.0.0.1:{detached.port}, mode accept, 2 workers, no TLS\n" in started.stderr
    assert started.stderr.endswith(f'Stop it with "blackhole stop". {READY}\n')
    assert listens(detached.port)  # at once: that is what exit code 0 says
    first = detached.number()
    assert title(first) == "blackhole: master"
    assert os.getsid(first) not in (first, os.getsid(0))
    assert os.readlink(f"/proc/{first}/cwd") == "/"
    for process in (first, *children(first)):
        streams = [os.readlink(f"/proc/{process}/fd/{number}") for number in range(3)]
        assert streams == [os.devnull] * 3

    again = detached.run("start")
    assert (again.returncode, again.stdout.splitlines()[0]) == (0, f"Blackhole is running, pid {first}.")
    known = detached.run("status")
    assert (known.returncode, known.stdout.splitlines()[0]) == (0, f"Blackhole is running, pid {first}.")
    second_copy = detached.run("run")
    assert (second_copy.returncode, second_copy.stderr) == (
        os.EX_TEMPFAIL,
        f"blackhole: already running, pid {first} ({detached.pid})\n",
    )

    assert detached.run("reload").returncode == 0
    wait_for(lambda: "reloaded: listening on" in detached.log.read_text(), "the reload")

    assert detached.run("restart").returncode == 0
    second = detached.number()
    assert second != first
    assert not alive(first)
    assert listens(detached.port)

    stopped = detached.run("stop")
    assert (stopped.returncode, stopped.stdout) == (0, "Blackhole has stopped.\n")
    assert not alive(second)
    assert not detached.pid.exists()
    assert greeting(detached.port) == ""
    assert detached.run("status").returncode == 3


def test_reload_finds_relative_paths_where_start_found_them(tmp_path: Path, detached: Detached) -> None:
    conf = tmp_path / "my.conf"
    conf.write_text("workers = 1\n")
    command = [*SCRIPT, "start", *detached.options, "--conf=my.conf"]
    subprocess.run(command, env=environment(), cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)
    conf.write_text("workers = 3\n")
    os.kill(detached.number(), signal.SIGHUP)
    wait_for(lambda: "reloaded: listening on" in detached.log.read_text(), "the reload")
    wait_for(lambda: len(children(detached.number())) == 3, "three workers")


def test_a_crashed_daemon_leaves_nothing_to_clean_up(detached: Detached) -> None:
    assert detached.run("start").returncode == 0
    os.kill(detached.number(), signal.SIGKILL)
    wait_for(lambda: greeting(detached.port) == "", "nobody listens")
    assert detached.run("status").returncode == 1
    assert detached.run("start").returncode == 0
    assert listens(detached.port)


def test_systemd_hears_how_it_fares(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        with Program(env={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as program:
            assert manager.recv(99) == b"READY=1"
            program.process.send_signal(signal.SIGHUP)
            assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", manager.recv(99))
            assert manager.recv(99) == b"READY=1"
            program.process.terminate()
            assert manager.recv(99) == b"STOPPING=1"
            assert program.process.wait(10) == 0


# What cannot be


def refused(*options: str, action: str = "run") -> tuple[int, str]:
    """The exit code and the one line that is said."""
    done = run(action, *options, "--workers=1")
    assert done.stdout == ""
    line, end = done.stderr.split("\n")
    assert end == ""
    assert line.startswith("blackhole: ")
    return done.returncode, line.removeprefix("blackhole: ")


@pytest.fixture(params=["run", "start"])
def action(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whatever goes wrong is told in the foreground and by `start` alike."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return str(request.param)


def files(tmp_path: Path) -> tuple[str, str, str]:
    return f"--pid={tmp_path / 'pid'}", f"--log={tmp_path / 'log'}", "--host=127.0.0.1"


def test_a_wrong_option_is_64(tmp_path: Path, action: str) -> None:
    code, line = refused(*files(tmp_path), "--prot=25", action=action)
    assert code == os.EX_USAGE
    assert "--port" in line


def test_a_wrong_conf_is_78_and_names_its_line(tmp_path: Path, action: str) -> None:
    conf = tmp_path / "conf"
    conf.write_text("# mine\nport = no\n")
    code, line = refused(*files(tmp_path), f"--conf={conf}", action=action)
    assert code == os.EX_CONFIG
    assert line.startswith(f"{conf}:2: port: ")


def test_a_missing_certificate_is_78(tmp_path: Path, action: str) -> None:
    code, line = refused(*files(tmp_path), "--ssl_cert=/no/such/cert.pem", action=action)
    assert code == os.EX_CONFIG
    assert "/no/such/cert.pem" in line


@as_root
def test_an_unknown_user_is_67(tmp_path: Path, action: str) -> None:
    assert refused(*files(tmp_path), "--user=no-such-user", action=action) == (
        os.EX_NOUSER,
        "there is no user no-such-user",
    )


def test_a_busy_port_is_71(tmp_path: Path, action: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, line = refused(*files(tmp_path), f"--port={port}", action=action)
    assert code == os.EX_OSERR
    assert f"127.0.0.1:{port}" in line
    assert not (tmp_path / "pid").exists()


@pytest.mark.parametrize("name", ["pid", "log"])
def test_a_file_that_cannot_be_made_is_73(tmp_path: Path, action: str, name: str) -> None:
    path = tmp_path / "none" / "file"
    given = [f"--{name}={path}", f"--{'log' if name == 'pid' else 'pid'}={tmp_path / 'other'}"]
    code, line = refused(*given, "--host=127.0.0.1", f"--port={free_port()}", action=action)
    assert (code, line) == (os.EX_CANTCREAT, f"{path} cannot be opened: No such file or directory")


def test_the_configuration_can_be_tested_without_a_port(tmp_path: Path, certificate: Certificate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        options = ["-t", *files(tmp_path), f"--port={other.getsockname()[1]}"]
        good = run(*options, f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}")
        assert (good.returncode, good.stdout, good.stderr) == (0, "The configuration is good.\n", "")
        bad = run(*options, f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.ca}")
        assert (bad.returncode, bad.stdout, len(bad.stderr.splitlines())) == (os.EX_CONFIG, "", 1)
    assert not (tmp_path / "pid").exists()


REQUESTS = {
    "--help": "Usage: blackhole",
    "--version": f"Blackhole {__version__}\n",
    "--print-config": "# Blackhole",
}


@pytest.mark.parametrize("flag", REQUESTS)
def test_requests_are_answered_on_standard_output(flag: str) -> None:
    done = run(flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(REQUESTS[flag])


def test_whoever_reads_only_the_beginning_of_help_sees_no_traceback() -> None:
    answer, told = os.pipe()
    os.close(answer)
    done = subprocess.run(
        [*SCRIPT, "--help"], env=environment(), stdout=told, stderr=subprocess.PIPE, check=False
    )
    os.close(told)
    assert (done.returncode, done.stderr) == (0, b"")


def test_without_anybody_to_read_its_standard_error_it_runs(tmp_path: Path) -> None:
    answer, told = os.pipe()
    os.close(answer)
    port = free_port()
    command = [*SCRIPT, "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    with subprocess.Popen(command, env=environment(), stderr=told) as process:
        os.close(told)
        wait_for(lambda: listens(port), "it serves")
        process.terminate()
    assert process.returncode == 0


def test_warnings_do_not_keep_it_from_running() -> None:
    done = run("-t", "--ssl_ca_certs_dir=/tmp")
    assert done.returncode == 0
    assert done.stderr.startswith("blackhole: --ssl_ca_certs_dir: ignored")


@pytest.mark.parametrize("debug", [False, True])
def test_a_mistake_of_ours_is_70(debug: bool) -> None:
    code = (
        "import sys; from blackhole import main; from blackhole.process import privileges;"
        " privileges.resolve = 5; sys.exit(main.main())"
    )
    done = run("-t", f"--debug={'yes' if debug else 'no'}", command=(*PYTHON, "-c", code))
    assert done.returncode == os.EX_SOFTWARE
    assert """internal error: TypeError("'int' object is not callable"); run with --debug""" in done.stderr
    assert ("Traceback" in done.stderr) is debug


def test_every_action_and_request_is_known() -> None:
    assert main.ACTIONS.keys() | {"explain"} == options.ACTIONS.keys()
    assert main.REQUESTS.keys() == options.REQUESTS.keys()


# As root, and as PID 1


@as_root
def test_workers_are_nobody_and_the_master_keeps_its_hands_clean() -> None:
    with Program() as program:
        assert status(program.pid)["Uid"] == "0 0 0 0"
        uid, gid = privileges.resolve("", "")
        for worker in program.workers():
            seen = status(worker)
            assert seen["Uid"] == " ".join([str(uid)] * 4)
            assert seen["Gid"] == " ".join([str(gid)] * 4)
            assert seen["Groups"] == str(gid)
            assert int(seen["CapEff"], 16) == int(seen["CapPrm"], 16) == 0
            assert seen["NoNewPrivs"] == "1"


def tcp(pid: int) -> Counter[str]:
    """The TCP sockets of a process by their state, as /proc/net/tcp has it."""
    inodes = {name[len("socket:[") : -1] for name in descriptors(pid) if name.startswith("socket:[")}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return Counter(TCP.get(row[3], row[3]) for row in rows if row[9] in inodes)


TCP = {"01": "established", "0A": "listens"}


def test_the_master_hears_no_client() -> None:
    """It may be root, and holds the port; but whoever talks, talks to workers."""
    with Program("--workers=2") as program, ExitStack() as clients:
        for _ in range(8):
            client = clients.enter_context(socket.create_connection(program.address))
            assert client.recv(999).startswith(b"220 ")
        assert tcp(program.pid) == {"listens": 1}
        assert sum(tcp(worker)["established"] for worker in program.workers()) == 8


@as_root
def test_the_pidfile_is_the_masters_alone(tmp_path: Path) -> None:
    """Whoever could write a number into it would have root signal that process (CVE-2017-11747)."""
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}", "--user=nobody") as program:
        seen = pid.stat()
        assert (seen.st_uid, seen.st_gid, seen.st_mode & 0o777) == (0, 0, 0o644)
        assert str(pid) in descriptors(program.pid)
        assert not any(str(pid) in descriptors(worker) for worker in program.workers())


@as_root
def test_root_is_obeyed_with_a_warning() -> None:
    with Program("--user=root") as program:
        assert "blackhole: workers run as root" in program.output()
        assert {status(worker)["Uid"] for worker in program.workers()} == {"0 0 0 0"}


@as_root
def test_the_log_belongs_to_the_workers(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Program(f"--log={log}", "--user=nobody"):
        assert log.stat().st_uid == NOBODY.pw_uid


@as_root
def test_as_pid_1_it_buries_strangers_and_stops_when_told() -> None:
    port = free_port()
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with Program(f"--port={port}", command=(*unshare, *SCRIPT)) as program:
        (master,) = children(program.pid)
        assert title(master) == "blackhole: master"
        # A stranger in that namespace whose parent dies at once.
        orphan = "import os, time\nif os.fork() == 0:\n    time.sleep(0.3)"
        subprocess.run(["nsenter", f"--target={master}", "--pid", sys.executable, "-c", orphan], check=True)
        wait_for(lambda: len(children(master)) == 3, "the orphan came to PID 1")
        wait_for(lambda: len(children(master)) == 2, "and was buried")
        assert listens(port)
        os.kill(master, signal.SIGTERM)
        assert program.process.wait(10) == 0
