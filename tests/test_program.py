"""The whole program as an operator uses it: forked processes, signals, pidfiles, exit statuses."""

from __future__ import annotations

import os
import pty
import re
import resource
import shlex
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import time
import zipapp
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trustme

from blackhole import __version__, main, options
from blackhole.action_table import ACTION_HELP
from blackhole.process import privileges
from tests.certificates import Certificate
from tests.http_api import Sink, ask
from tests.program import (
    MODULE,
    NOBODY,
    PYTHON,
    READY,
    ROOT,
    SCRIPT,
    Program,
    alive,
    as_root,
    children,
    descriptors,
    end,
    environment,
    free_port,
    run,
    state,
    status,
    title,
    wait_for,
)


def greeting(port: int, timeout: float = 10.0) -> str:
    """Return the first line a client receives; empty if nothing listens, or stops listening meanwhile."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout) as client,
            client.makefile("rb") as replies,
        ):
            return replies.readline().decode().strip()
    except (ConnectionRefusedError, ConnectionResetError):
        return ""


def listens(port: int) -> bool:
    return greeting(port).startswith("220 ")


@contextmanager
def sending(port: int) -> Iterator[smtplib.SMTP]:
    """Connect a client and bring it into the middle of a message."""
    client = smtplib.SMTP("127.0.0.1", port, timeout=20)
    try:
        assert client.docmd("DATA")[0] == 354
        yield client
    finally:
        client.close()


# In the foreground


@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["bin/blackhole", "python -m blackhole"])
def test_start_prints_what_runs_and_how_to_stop_it(command: tuple[str, ...]) -> None:
    with Program(command=command) as program:
        where, how = program.output().splitlines()
        address = f"127.0.0.1:{program.port}"
        assert where == f"blackhole {__version__}: listening on {address}, mode accept, 2 workers, no TLS"
        assert how == "Ctrl-C stops it. All mail is thrown away."
        assert title(program.pid) == "blackhole: master"
        assert [title(pid) for pid in program.workers()] == ["blackhole: worker 1", "blackhole: worker 2"]
        with smtplib.SMTP("127.0.0.1", program.port) as client:
            assert client.sendmail("a@example.com", "b@example.com", "hello") == {}


def test_ctrl_c_stops_at_once_and_prints_the_figures_of_the_run() -> None:
    with Program() as program, socket.create_connection(program.address) as client:
        client.recv(999)
        with smtplib.SMTP(*program.address) as sender:
            sender.sendmail("a@example.com", ["b@example.com", "c@example.com"], "hello")
        workers, before = program.workers(), program.output()
        began = time.monotonic()
        program.interrupt()
        assert program.process.wait(20) == 0
        assert time.monotonic() - began < 10, "the drain timeout of 30 s is not waited for"
        # A worker that gets no processor time for 0.8 s is killed, which may be on a busy machine.
        lines = [
            line
            for line in program.output().removeprefix(before).splitlines()
            if not line.endswith("did not stop in time and is killed")
        ]
        stopping, stopped, messages, connections, octets, *_ = lines
        assert [stopping.partition("INFO ")[2], stopped.partition("INFO ")[2]] == [
            "stopping at once",
            "stopped",
        ], lines
        figures = r"blackhole: 1 message \(1 accepted, 0 deferred, 0 rejected\), 2 recipients in \d+ s"
        assert re.fullmatch(figures, messages)
        assert connections == "blackhole: 2 connections, 0 closed by clients without QUIT"
        assert re.fullmatch(r"blackhole: \d+ octets received", octets)
        assert not any(map(alive, workers))


def test_start_prints_a_line_for_each_listener(certificate: Certificate) -> None:
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


def test_port_chosen_by_the_kernel_is_printed() -> None:
    with Program("--listen=127.0.0.1:0") as program:
        port = re.search(r"127\.0\.0\.1:(\d+)", program.output())
        assert port is not None
        assert listens(int(port[1]))


def test_master_has_no_event_loop_no_thread_and_no_zombie() -> None:
    with Program() as program:
        os.kill(program.workers()[0], signal.SIGKILL)
        wait_for(lambda: "was killed by signal 9 (Killed)" in program.output(), "the worker was reaped")
        wait_for(lambda: len(program.workers()) == 2, "the worker was replaced")
        assert "anon_inode:[eventpoll]" not in descriptors(program.pid)
        assert status(program.pid)["Threads"] == "1"
        assert not any(state(pid) == "Z" for pid in children(program.pid))


def test_commands_that_start_no_server_import_neither_tornado_nor_ssl() -> None:
    code = "import sys, blackhole.main; print({'asyncio', 'ssl', 'tornado', 'daemon'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], env=environment(), text=True) == "set()\n"


# Deaths


def test_killed_worker_is_replaced_and_every_new_client_is_greeted() -> None:
    with Program("--workers=2") as program:
        for _ in range(3):
            os.kill(program.workers()[0], signal.SIGKILL)
            for _ in range(20):
                assert listens(program.port)
            wait_for(lambda: len(program.workers()) == 2, "a new worker", timeout=5.0)


def test_workers_end_after_the_master_was_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        workers = program.workers()
        program.process.kill()
        program.process.wait()
        wait_for(lambda: greeting(program.port) == "", "no process listens", timeout=3.0)
        wait_for(lambda: not any(map(alive, workers)), "the workers have ended")
        done = run("status", f"--pid={pid}")
        assert (done.returncode, done.stdout) == (1, f"Blackhole is not running; it died and left {pid}.\n")


@pytest.mark.parametrize("user", [pytest.param("root", marks=as_root), ""])
def test_stopped_worker_of_a_killed_master_continues_and_ends(user: str) -> None:
    """It would keep the port, and clients would connect and wait in vain."""
    with Program("--workers=2", *([f"--user={user}"] if user else [])) as program:
        workers = program.workers()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
            wait_for(partial(lambda pid: state(pid) == "T", pid), "the worker is stopped")
        program.process.kill()
        program.process.wait()
        wait_for(lambda: not any(map(alive, workers)), "the workers have ended")
        assert greeting(program.port) == ""


def test_start_ends_a_hanging_child_of_a_killed_master_without_a_pidfile() -> None:
    """It keeps the port, as it does not notice the death of its master. One with a master is left alone."""
    port = free_port()
    code = f"""
import os, socket, time
from setproctitle import setproctitle
setproctitle("blackhole: master")
listening = socket.create_server(("127.0.0.1", {port}))
if not os.fork():
    setproctitle("blackhole: worker 1")
    time.sleep(60)
listening.close()
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], env=environment()) as master:
        try:
            wait_for(lambda: [*map(title, children(master.pid))] == ["blackhole: worker 1"], "the child runs")
            (hung,) = children(master.pid)
            wait_for(lambda: tcp(master.pid)["listening"] == 0, "the master has closed its socket")
            refused = run("--host=127.0.0.1", f"--port={port}")
            assert refused.returncode == os.EX_OSERR
            assert "something else does" in refused.stderr
            assert alive(hung)
        finally:
            master.kill()
    try:
        with Program(f"--port={port}") as program:
            assert listens(port)
            assert not alive(hung)
            assert f"worker 1 (pid {hung}) of a server that was killed kept its port" in program.output()
    finally:
        if alive(hung):
            os.kill(hung, signal.SIGKILL)


@pytest.mark.parametrize("stops_first", [False, True])
def test_start_ends_children_of_a_killed_master_that_keep_the_port_and_no_others(
    tmp_path: Path, stops_first: bool
) -> None:
    """Two that hang: one has the port, as it does not notice the death of its master."""
    pid, port = tmp_path / "pid", free_port()
    code = f"""
import os, socket, time
from setproctitle import setproctitle
from blackhole.process.pidfile import Pidfile
setproctitle("blackhole: master")
pidfile = Pidfile({str(pid)!r})
pidfile.write()
for number in (1, 2):
    child = os.fork()
    if not child:
        pidfile.close()
        setproctitle(f"blackhole: worker {{number}}")
        if number == 2:
            listening = socket.create_server(("127.0.0.1", {port}))
        time.sleep(60)
    pidfile.record_child(child)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], env=environment()) as master:
        wait_for(lambda: len(children(master.pid)) == 2, "both children run")
        idle, hung = children(master.pid)
        wait_for(lambda: tcp(hung)["listening"] == 1, "the port is open")
        master.kill()
    try:
        if stops_first:
            done = run("stop", f"--pid={pid}")
            assert (done.returncode, done.stdout) == (0, "Blackhole was not running.\n")
            assert f"worker 2 (pid {hung}) of a server that was killed kept its port" in done.stderr
            assert not alive(hung)
            assert list(tmp_path.iterdir()) == []
        with Program(f"--pid={pid}", f"--port={port}") as program:
            assert listens(port)
            assert alive(idle)
            assert not alive(hung)
            message = f"blackhole: worker 2 (pid {hung}) of a server that was killed kept its port"
            assert (message in program.output()) is not stops_first
    finally:
        for child in filter(alive, (idle, hung)):
            os.kill(child, signal.SIGKILL)


def test_session_of_a_killed_master_is_finished_while_a_new_server_starts(tmp_path: Path) -> None:
    options = f"--pid={tmp_path / 'pid'}", f"--port={free_port()}"
    with Program(*options) as first, sending(first.port) as client:
        first.process.kill()
        first.process.wait()
        wait_for(lambda: greeting(first.port) == "", "no process listens", timeout=3.0)
        with Program(*options):
            client.send(b"still here\r\n.\r\n")
            assert client.getreply()[0] == 250


# Stopping


def test_sigterm_lets_a_message_under_way_be_finished() -> None:
    with (
        Program() as program,
        sending(program.port) as busy,
        socket.create_connection(program.address, 10) as idle,
    ):
        assert idle.recv(999).startswith(b"220 ")
        program.process.terminate()
        assert idle.recv(999).startswith(b"421 ")
        wait_for(lambda: greeting(program.port) == "", "no process listens", timeout=3.0)
        assert program.process.poll() is None
        busy.send(b"the end\r\n.\r\n")
        assert busy.getreply()[0] == 250
        assert program.process.wait(10) == 0


def test_second_sigterm_stops_without_waiting_for_clients() -> None:
    with Program("--drain_timeout=60") as program, sending(program.port):
        program.process.terminate()
        wait_for(lambda: greeting(program.port) == "", "no process listens", timeout=3.0)
        assert program.stop(signal.SIGTERM, timeout=5.0) == 0


def test_pidfile_is_removed_when_the_program_ends(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        assert pid.read_text() == f"{program.pid}\n"
        assert not any(str(pid) in descriptors(worker) for worker in program.workers())
        assert program.stop() == 0
        assert not pid.exists()


# Signals


def test_sigusr1_reopens_a_rotated_log() -> None:
    with TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # the workers run as another user
        log = Path(directory) / "log"
        with Program(f"--log={log}") as program:
            log.rename(f"{log}.1")
            program.process.send_signal(signal.SIGUSR1)
            wait_for(log.exists, "a new log")
            for pid in (program.pid, *program.workers()):
                wait_for(partial(lambda pid: str(log) in descriptors(pid), pid), f"{title(pid)} opened it")
            assert "listening on" in Path(f"{log}.1").read_text()


@as_root
def test_workers_use_a_rotated_log_that_they_cannot_open_themselves(tmp_path: Path) -> None:
    """The log is in a directory that only root can enter."""
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    log = folder / "log"
    with Sink(f"--log={log}", "--user=nobody") as sink:
        pids = [sink.pid, *sink.workers(), sink.dashboard()]
        for number, signalled in enumerate((pids[:1], pids[:1], pids[::-1])):  # the last time all of them
            log.rename(f"{log}.{number}")
            for pid in signalled:
                os.kill(pid, signal.SIGUSR1)
            for pid in pids:
                files = partial(lambda pid: [file for file in descriptors(pid) if str(log) in file], pid)
                wait_for(lambda files=files: files() == [str(log)], f"{title(pid)} uses the new log alone")
            assert len(descriptors(pids[1])) == len(descriptors(pids[2]))
        assert not any("not reopened" in file.read_text() for file in folder.iterdir())
        assert listens(sink.port)


def test_reopen_lets_the_pidfile_owner_open_its_log_again(tmp_path: Path) -> None:
    pid, log = tmp_path / "pid", tmp_path / "log"
    assert run("reopen", f"--pid={pid}").returncode == 7
    pid.write_text(f"{os.getpid()}\n")
    assert run("reopen", f"--pid={pid}").returncode == 7
    with Program(f"--pid={pid}", f"--log={log}", "--user=root" if os.geteuid() == 0 else "--debug=no"):
        log.rename(f"{log}.1")
        done = run("reopen", f"--pid={pid}")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        wait_for(log.exists, "a new log")


def test_reload_by_another_version_says_that_a_restart_is_needed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import sys, blackhole; blackhole.__version__ = '99.1'"
        "; from blackhole import main; sys.exit(main.main())"
    )
    with Program(f"--pid={pid}", command=(*PYTHON, "-c", code)) as program:
        done = run("reload", f"--pid={pid}")
        assert done.returncode == 0
        assert done.stderr == (
            f"blackhole: the server still runs Blackhole 99.1: restart it to run {__version__}\n"
        )
        wait_for(lambda: "reloaded: listening on" in program.output(), "the reload")


def test_terminal_that_is_closed_ends_a_server_in_the_foreground() -> None:
    port = free_port()
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, if it started the tests, ignores it
        os.execve(SCRIPT[0], [*SCRIPT, "--host=127.0.0.1", f"--port={port}", "--workers=1"], environment())
    wait_for(lambda: listens(port), "the server runs")
    workers = children(pid)
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    assert not any(map(alive, workers))
    assert greeting(port) == ""


def test_server_that_nohup_started_outlives_its_terminal() -> None:
    port = free_port()
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        os.execve(SCRIPT[0], [*SCRIPT, "--host=127.0.0.1", f"--port={port}", "--workers=1"], environment())
    wait_for(lambda: listens(port), "the server runs")
    os.close(terminal)
    os.kill(pid, signal.SIGHUP)
    time.sleep(0.5)
    assert listens(port)
    os.kill(pid, signal.SIGINT)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    "number", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTTIN", "SIGTTOU", "SIGALRM", "SIGCHLD"]
)
def test_signal_during_the_start_does_not_end_the_server(number: str) -> None:
    code = f"""
import os, signal, sys
from blackhole import main, service
detach, run = service.Service.detach, service.Service.run
def signalled(self):
    os.kill(os.getpid(), signal.{number})
    return run(self)
service.Service.run = signalled
sys.exit(main.main())
"""
    with Program(command=(*PYTHON, "-c", code)) as program:
        program.process.send_signal(getattr(signal, number))
        time.sleep(0.3)
        assert listens(program.port)
        assert program.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_signal_that_ends_the_start_leaves_no_pidfile(tmp_path: Path, number: signal.Signals) -> None:
    pid = tmp_path / "pid"
    code = f"""
import os, sys
from blackhole import main, service
service.Service.run = lambda self: os.kill(os.getpid(), {int(number)})
sys.exit(main.main())
"""
    done = run(f"--pid={pid}", "--host=127.0.0.1", "--port=0", command=(*PYTHON, "-c", code))
    assert (done.returncode, done.stderr) == (128 + number, "")
    assert list(tmp_path.iterdir()) == []


def test_reader_of_standard_error_that_stops_does_not_stop_the_server() -> None:
    """As a pager does, or Ctrl-S in a terminal."""
    read_end, write_end = os.pipe()
    port = free_port()
    command = [*SCRIPT, "--host=127.0.0.1", f"--port={port}", "--workers=2"]
    with ExitStack() as stack:
        stack.callback(os.close, read_end)
        stack.callback(os.close, write_end)
        process = subprocess.Popen(command, env=environment(), stderr=write_end)
        stack.callback(end, process)

        def workers() -> list[int]:
            """The workers that serve: one that is killed earlier is started again later and later."""
            return [pid for pid in children(process.pid) if title(pid).startswith("blackhole: worker")]

        wait_for(lambda: len(workers()) == 2 and listens(port), "it serves")
        os.set_blocking(write_end, False)
        with suppress(BlockingIOError):
            while True:
                os.write(write_end, b"x")
        os.set_blocking(write_end, True)
        for _ in range(3):
            before = workers()
            os.kill(before[0], signal.SIGKILL)
            wait_for(lambda before=before: len(workers()) == 2 and workers() != before, "a new worker", 60.0)
            wait_for(lambda: listens(port), "it serves")
        process.terminate()
        assert process.wait(40) == 0


def test_sigttin_adds_a_worker_and_sigttou_removes_one() -> None:
    with Program() as program:
        program.process.send_signal(signal.SIGTTIN)
        wait_for(lambda: len(program.workers()) == 3, "a third worker")
        program.process.send_signal(signal.SIGTTOU)
        wait_for(lambda: len(program.workers()) == 2, "two workers")


# Reload


@pytest.fixture
def conf(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "blackhole.conf"
    path.write_text(f"listen = 127.0.0.1:{free_port()}\nworkers = 1\n")
    yield path


def listen(conf: Path, *ports: int) -> None:
    conf.write_text("".join(f"listen = 127.0.0.1:{port}\n" for port in ports) + "workers = 1\n")


def test_sighup_opens_new_ports_and_closes_old_ones(conf: Path) -> None:
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


def test_sighup_loses_no_connection() -> None:
    with Program() as program:
        for _ in range(5):
            program.process.send_signal(signal.SIGHUP)
            for _ in range(20):
                assert listens(program.port)
        wait_for(lambda: len(program.workers()) == 2, "two workers")


@pytest.mark.parametrize("fault", ["por = 25", "port = none", "ssl_cert = /none"])
def test_reload_of_a_wrong_configuration_changes_nothing(conf: Path, tmp_path: Path, fault: str) -> None:
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


@pytest.mark.parametrize("option", ["scenario", "ssl_cert", "auth"])
def test_file_that_would_keep_the_master_waiting_is_refused(conf: Path, tmp_path: Path, option: str) -> None:
    """Opening a FIFO waits until another process opens it for writing."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Program(f"--conf={conf}") as program:
        workers, good = program.workers(), conf.read_text()
        conf.write_text(f"{good}{option} = {fifo}\nauth_plaintext = yes\n")
        done = run("run", f"--conf={conf}", timeout=10.0)
        assert done.returncode == os.EX_CONFIG
        assert done.stderr.splitlines()[-1].endswith(f"{fifo}: not a regular file")
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: f"{fifo}: not a regular file" in program.output(), "one error")
        os.kill(workers[0], signal.SIGKILL)
        wait_for(lambda: set(program.workers()) - set(workers), "a new worker", timeout=5.0)
        assert program.stop() == 0


def test_reload_with_a_busy_port_changes_nothing(conf: Path) -> None:
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


def test_reload_to_more_workers_than_there_are_counters_for_changes_nothing(conf: Path) -> None:
    with Program(f"--conf={conf}") as program:
        workers = program.workers()
        conf.write_text(conf.read_text().replace("workers = 1", "workers = 100"))
        program.process.send_signal(signal.SIGHUP)
        message = "ERROR reload failed, nothing has changed: 100 workers are too many for a reload"
        wait_for(lambda: message in program.output(), "one error")
        assert program.workers() == workers


def test_new_certificate_is_used_after_a_reload(tmp_path: Path) -> None:
    cert, key, port = tmp_path / "cert.pem", tmp_path / "key.pem", free_port()

    def issue() -> ssl.SSLContext:
        """Replace certificate and key, and return a context that trusts the new certificate."""
        authority, context = trustme.CA(), ssl.create_default_context()
        authority.configure_trust(context)
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(str(key))
        issued.cert_chain_pems[0].write_to_path(str(cert))
        key.chmod(0o600)  # readable by root alone, not by the workers
        return context

    first = issue()
    with Program(f"--listen=127.0.0.1:{port},tls", f"--ssl_cert={cert}", f"--ssl_key={key}") as program:
        smtplib.SMTP_SSL("127.0.0.1", port, context=first).quit()
        second, old = issue(), program.workers()
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: not any(map(alive, old)), "the old workers have ended")
        smtplib.SMTP_SSL("127.0.0.1", port, context=second).quit()


def test_client_that_is_idle_during_a_reload_can_still_send_mail(tmp_path: Path) -> None:
    with Program() as program, smtplib.SMTP(*program.address) as client:
        client.ehlo()
        old = program.workers()
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reloaded: " in program.output(), "the reload")
        assert client.sendmail("ann@example.com", "bob@example.com", "hello") == {}
        client.quit()
        wait_for(lambda: not any(map(alive, old)), "the old workers have ended")


def test_client_of_an_old_worker_gets_421_after_the_drain_timeout(tmp_path: Path) -> None:
    with Program("--drain_timeout=1") as program, smtplib.SMTP(*program.address) as client:
        program.process.send_signal(signal.SIGHUP)
        assert client.sock is not None
        assert client.sock.recv(100) == b"421 4.3.2 Server is stopping, try again later\r\n"


def test_reload_warns_of_settings_that_it_cannot_change(conf: Path, tmp_path: Path) -> None:
    with Program(f"--conf={conf}") as program:
        conf.write_text(f"{conf.read_text()}log = {tmp_path / 'other'}\npid = {tmp_path / 'pid'}\n")
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reloaded: " in program.output(), "the reload")
        assert "WARNING log stays as it is until the next start" in program.output()
        assert "WARNING pid stays as it is until the next start" in program.output()
        assert not (tmp_path / "other").exists()
        assert not (tmp_path / "pid").exists()


# Detached


RUNS = f"Blackhole {__version__} is running"


class Detached:
    """Options of a daemon in a directory of its own, and its pid."""

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


def test_start_status_reload_restart_and_stop_of_a_daemon(detached: Detached) -> None:
    assert detached.run("status").returncode == 3
    assert detached.run("reload").returncode == main.NOT_RUNNING
    assert detached.run("stop").returncode == 0

    started = detached.run("start")
    assert started.returncode == 0, started.stderr
    assert f"listening on 127.0.0.1:{detached.port}, mode accept, 2 workers, no TLS\n" in started.stderr
    assert started.stderr.endswith(f'Stop it with "blackhole stop". {READY}\n')
    assert listens(detached.port)  # exit status 0 says that clients can connect
    first = detached.number()
    assert title(first) == "blackhole: master"
    assert os.getsid(first) not in (first, os.getsid(0))
    assert os.readlink(f"/proc/{first}/cwd") == "/"
    for process in (first, *children(first)):
        streams = [os.readlink(f"/proc/{process}/fd/{number}") for number in range(3)]
        assert streams == [os.devnull] * 3

    again = detached.run("start")
    assert (again.returncode, again.stdout.splitlines()[0]) == (0, f"{RUNS}, pid {first}.")
    known = detached.run("status")
    assert (known.returncode, known.stdout.splitlines()[0]) == (0, f"{RUNS}, pid {first}.")
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
    wait_for(lambda: not alive(first), "the master has ended", timeout=5.0)
    assert listens(detached.port)

    stopped = detached.run("stop")
    assert (stopped.returncode, stopped.stdout) == (0, "Blackhole has stopped.\n")
    wait_for(lambda: not alive(second), "the master has ended", timeout=5.0)
    assert not detached.pid.exists()
    assert greeting(detached.port) == ""
    assert detached.run("status").returncode == 3


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_start_with_closed_standard_streams(detached: Detached, closed: list[int]) -> None:
    """As cron and some supervisors start programs."""
    command = shlex.join([*SCRIPT, "start", *detached.options, "--workers=1"])
    shell = f"exec {command} {' '.join(f'{number}>&-' for number in closed)}"
    done = subprocess.run(
        ["sh", "-c", shell], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert listens(detached.port)
    for process in (detached.number(), *children(detached.number())):
        streams = [os.readlink(f"/proc/{process}/fd/{number}") for number in range(3)]
        assert streams == [os.devnull] * 3


def test_start_in_a_deleted_directory(tmp_path: Path, detached: Detached) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    in_gone = f"cd {gone} && rmdir {gone} && exec"
    relative = subprocess.run(
        ["sh", "-c", f"{in_gone} {shlex.join([*SCRIPT, 'start', '--log=log'])}"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (relative.returncode, relative.stderr) == (
        os.EX_USAGE,
        "blackhole: --log: expected an absolute path because the current directory is deleted, not 'log'\n",
    )
    gone.mkdir()
    command = shlex.join([*SCRIPT, "start", *detached.options, "--workers=1"])
    subprocess.run(["sh", "-c", f"{in_gone} {command}"], env=environment(), check=True, timeout=60)
    assert listens(detached.port)
    assert run("reload", *detached.options).returncode == 0
    wait_for(lambda: "reloaded: listening on" in detached.log.read_text(), "the reload")


def test_reload_resolves_relative_paths_in_the_directory_of_the_start(
    tmp_path: Path, detached: Detached
) -> None:
    conf = tmp_path / "my.conf"
    conf.write_text("workers = 1\n")
    command = [*SCRIPT, "start", *detached.options, "--conf=my.conf"]
    subprocess.run(command, env=environment(), cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)
    conf.write_text("workers = 3\n")
    os.kill(detached.number(), signal.SIGHUP)
    wait_for(lambda: "reloaded: listening on" in detached.log.read_text(), "the reload")
    wait_for(lambda: len(children(detached.number())) == 3, "three workers")


def test_daemon_that_was_killed_can_be_started_again(detached: Detached) -> None:
    assert detached.run("start").returncode == 0
    os.kill(detached.number(), signal.SIGKILL)
    wait_for(lambda: greeting(detached.port) == "", "no process listens")
    assert detached.run("status").returncode == 1
    assert detached.run("start").returncode == 0
    assert listens(detached.port)


def test_systemd_is_notified_of_start_reload_and_stop(tmp_path: Path) -> None:
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


# Errors


def refused(*options: str, action: str = "run") -> tuple[int, str]:
    """Run the program; return its exit status and the one line it prints."""
    done = run(action, *options, "--workers=1")
    assert done.stdout == ""
    line, end = done.stderr.split("\n")
    assert end == ""
    assert line.startswith("blackhole: ")
    return done.returncode, line.removeprefix("blackhole: ")


@pytest.fixture(params=["run", "start"])
def action(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`run` and `start`, which report the same errors."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return str(request.param)


def files(tmp_path: Path) -> tuple[str, str, str]:
    return f"--pid={tmp_path / 'pid'}", f"--log={tmp_path / 'log'}", "--host=127.0.0.1"


def test_wrong_option_exits_with_64(tmp_path: Path, action: str) -> None:
    code, line = refused(*files(tmp_path), "--prot=25", action=action)
    assert code == os.EX_USAGE
    assert "--port" in line


def test_wrong_conf_file_exits_with_78_and_names_the_line(tmp_path: Path, action: str) -> None:
    conf = tmp_path / "conf"
    conf.write_text("# comment\nport = no\n")
    code, line = refused(*files(tmp_path), f"--conf={conf}", action=action)
    assert code == os.EX_CONFIG
    assert line.startswith(f"{conf}:2: port: ")


def test_missing_certificate_exits_with_78(tmp_path: Path, action: str) -> None:
    code, line = refused(*files(tmp_path), "--ssl_cert=/no/such/cert.pem", action=action)
    assert code == os.EX_CONFIG
    assert "/no/such/cert.pem" in line


@as_root
def test_unknown_user_exits_with_67(tmp_path: Path, action: str) -> None:
    assert refused(*files(tmp_path), "--user=no-such-user", action=action) == (
        os.EX_NOUSER,
        "there is no user no-such-user",
    )


def test_busy_port_exits_with_71(tmp_path: Path, action: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, line = refused(*files(tmp_path), f"--port={port}", action=action)
    assert code == os.EX_OSERR
    assert f"127.0.0.1:{port}" in line
    assert not (tmp_path / "pid").exists()


@pytest.mark.parametrize("name", ["pid", "log"])
def test_file_that_cannot_be_created_exits_with_73(tmp_path: Path, action: str, name: str) -> None:
    path = tmp_path / "none" / "file"
    given = [f"--{name}={path}", f"--{'log' if name == 'pid' else 'pid'}={tmp_path / 'other'}"]
    code, line = refused(*given, "--host=127.0.0.1", f"--port={free_port()}", action=action)
    assert (code, line) == (os.EX_CANTCREAT, f"cannot open {path}: No such file or directory")


def test_configuration_test_binds_no_port(tmp_path: Path, certificate: Certificate) -> None:
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
def test_help_version_and_configuration_are_printed_on_standard_output(flag: str) -> None:
    done = run(flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(REQUESTS[flag])


def test_help_into_a_closed_pipe_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [*SCRIPT, "--help"], env=environment(), stdout=write_end, stderr=subprocess.PIPE, check=False
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")


def test_start_with_few_descriptors_says_how_many_connections_are_left() -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))

    command = [*SCRIPT, "-t"]
    done = subprocess.run(
        command, env=environment(), preexec_fn=limit, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stderr == (
        "blackhole: max_connections is 32 instead of 10000: a worker may open only 96 files;"
        " raise the limit (ulimit -n, LimitNOFILE)\n"
    )


@as_root
def test_full_disk_under_the_pidfile_is_reported_as_such(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(tmp_path)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("root may not mount a file system here")
    try:
        (tmp_path / "x").write_bytes(b"x" * 4096)
        done = run(f"--pid={tmp_path}/pid", "--host=127.0.0.1", f"--port={free_port()}")
        assert (done.returncode, done.stderr) == (
            os.EX_CANTCREAT,
            f"blackhole: cannot write {tmp_path}/pid: No space left on device\n",
        )
        assert [path.name for path in tmp_path.iterdir()] == ["x"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_program_in_an_archive_has_its_profiles_and_its_dashboard(tmp_path: Path) -> None:
    """An archive of zipapp; the packages that it needs are installed."""
    folder, archive = tmp_path / "folder", tmp_path / "blackhole.pyz"
    shutil.copytree(ROOT / "blackhole", folder / "blackhole", ignore=shutil.ignore_patterns("__pycache__"))
    zipapp.create_archive(folder, archive, main="blackhole.__main__:main")
    with Sink(
        "--scenario=profile:flaky", command=(sys.executable, str(archive)), env={"PYTHONPATH": ""}
    ) as sink:
        assert sink.dashboard()
        assert ask(sink.http, "/").status == 200
        os.kill(sink.pid, signal.SIGHUP)
        wait_for(lambda: "reloaded: dashboard on" in sink.output(), "the reload")
        assert "WARNING" not in sink.output()


def test_server_runs_with_a_closed_standard_error(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    port = free_port()
    command = [*SCRIPT, "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    with subprocess.Popen(command, env=environment(), stderr=write_end) as process:
        os.close(write_end)
        wait_for(lambda: listens(port), "it serves")
        process.terminate()
    assert process.returncode == 0


def test_warning_does_not_prevent_a_start() -> None:
    done = run("-t", "--ssl_ca_certs_dir=/tmp")
    assert done.returncode == 0
    assert done.stderr.startswith("blackhole: --ssl-ca-certs-dir: ignored")


@pytest.mark.parametrize("debug", [False, True])
def test_internal_error_exits_with_70(debug: bool) -> None:
    code = (
        "import sys; from blackhole import main; from blackhole.process import privileges;"
        " privileges.resolve = 5; sys.exit(main.main())"
    )
    done = run("-t", f"--debug={'yes' if debug else 'no'}", command=(*PYTHON, "-c", code))
    assert done.returncode == os.EX_SOFTWARE
    assert """internal error: TypeError("'int' object is not callable"); run with --debug""" in done.stderr
    assert ("Traceback" in done.stderr) is debug


def test_every_action_and_request_of_the_options_is_implemented() -> None:
    assert main.ACTIONS.keys() | main.STARTS.keys() | {"explain", "help", "version"} == ACTION_HELP.keys()
    assert main.REQUESTS.keys() == options.REQUEST_FLAGS.keys()


# As root, and as PID 1


@as_root
def test_master_of_root_stays_root_and_its_workers_drop_all_privileges() -> None:
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
    """Count the TCP sockets of a process by state, from /proc/net/tcp."""
    inodes = {name[len("socket:[") : -1] for name in descriptors(pid) if name.startswith("socket:[")}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return Counter(TCP.get(row[3], row[3]) for row in rows if row[9] in inodes)


TCP = {"01": "established", "0A": "listening"}


def test_master_holds_no_connection_of_a_client() -> None:
    """The master may be root: it holds the listening socket and reads nothing from clients."""
    with Program("--workers=2") as program, ExitStack() as clients:
        for _ in range(8):
            client = clients.enter_context(socket.create_connection(program.address))
            assert client.recv(999).startswith(b"220 ")
        # The kernel lists sockets in pieces: while others come and go, one may be missing.
        wait_for(lambda: tcp(program.pid) == {"listening": 1}, "the master holds the listening socket alone")
        wait_for(
            lambda: sum(tcp(worker)["established"] for worker in program.workers()) == 8,
            "the workers hold the connections",
        )


@as_root
def test_pidfile_belongs_to_root_and_is_closed_in_workers(tmp_path: Path) -> None:
    """A user who could write a pid into it could have root signal that process (CVE-2017-11747)."""
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}", "--user=nobody") as program:
        seen = pid.stat()
        assert (seen.st_uid, seen.st_gid, seen.st_mode & 0o777) == (0, 0, 0o644)
        assert str(pid) in descriptors(program.pid)
        assert not any(str(pid) in descriptors(worker) for worker in program.workers())


@as_root
def test_workers_as_root_cause_a_warning() -> None:
    with Program("--user=root") as program:
        assert "blackhole: workers run as root" in program.output()
        assert {status(worker)["Uid"] for worker in program.workers()} == {"0 0 0 0"}


@as_root
def test_log_of_the_program_belongs_to_the_user_of_the_workers(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Program(f"--log={log}", "--user=nobody"):
        assert log.stat().st_uid == NOBODY.pw_uid


@as_root
def test_pid_1_reaps_orphans_and_stops_at_sigterm() -> None:
    port = free_port()
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with Program(f"--port={port}", command=(*unshare, *SCRIPT)) as program:
        (master,) = children(program.pid)
        assert title(master) == "blackhole: master"
        # A process in the namespace whose parent exits at once.
        orphan = "import os, time\nif os.fork() == 0:\n    time.sleep(0.3)"
        subprocess.run(["nsenter", f"--target={master}", "--pid", sys.executable, "-c", orphan], check=True)
        wait_for(lambda: len(children(master)) == 3, "PID 1 adopts the orphan")
        wait_for(lambda: len(children(master)) == 2, "the orphan is reaped")
        assert listens(port)
        os.kill(master, signal.SIGTERM)
        assert program.process.wait(10) == 0
