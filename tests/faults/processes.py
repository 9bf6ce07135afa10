"""Faults of processes: kill, freeze, stop and reload them while clients are connected."""

from __future__ import annotations

import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import ExitStack, suppress

from tests.certificates import issue
from tests.faults.fault import Trial, fault
from tests.faults.load_clients import LoadGenerator, percentile
from tests.program import ROOT, Program, alive, descriptors, environment, free_port, run, state, wait_for
from tests.resource_usage import cpu_seconds, master_and_workers
from tests.smtp_client import Address, SMTPClient, UnexpectedReply, deliver


def refuses_connections(address: Address) -> bool:
    """Whether nobody listens at an address."""
    try:
        socket.create_connection(address, 5).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def seconds_until_refused(address: Address, began: float) -> float:
    """Wait until nobody listens any more, and return the seconds since `began`."""
    wait_for(lambda: refuses_connections(address), "the port is closed", 30)
    return time.monotonic() - began


@fault(
    "G1",
    "kill -9 of a worker at 200 messages a second",
    "accepts again within 1 s; no waiting client is lost, and no session of another worker",
)
def killed_worker(trial: Trial) -> None:
    """Connect while all workers are stopped; kill one of them and continue the others. Then kill under load.

    A worker that is killed in its first second would count as one that cannot start.
    """
    with Program("--workers=4") as program, ExitStack() as stack:
        program.wait_until_accepting(4)
        workers = program.workers()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        waiting = [stack.enter_context(socket.create_connection(program.address, 30)) for _ in range(100)]
        os.kill(workers[0], signal.SIGKILL)
        for pid in workers[1:]:
            os.kill(pid, signal.SIGCONT)
        lost = 0
        for connection in waiting:
            try:
                lost += not connection.recv(999).startswith(b"220 ")
            except OSError:
                lost += 1
        trial.count("of 100 connections that waited to be accepted, lost", lost)
        stack.close()
        program.wait_until_accepting(4)
        seconds, lost, at_victims = [], 0, 0
        kills = 20 if trial.full else 3
        with LoadGenerator(program.address, 200) as load:
            for _ in range(kills):
                sessions = [SMTPClient(program.address) for _ in range(16)]
                victim = program.workers()[0]  # the oldest
                os.kill(victim, signal.SIGSTOP)  # it must not accept between this count and its death
                time.sleep(0.05)
                snapshot = program.snapshot()
                at_victims += sum(worker.open for worker in snapshot.processes if worker.pid == victim)
                began = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                program.wait_until_accepting(4, without=victim)
                seconds.append(time.monotonic() - began)
                time.sleep(0.5)
                for session in sessions:
                    with session, suppress(OSError):
                        lost += 1
                        lost -= session.command("NOOP").startswith("250")
        trial.time("time until it accepts again, longest", max(seconds), 1.0, 20.0)
        trial.time("median", percentile(seconds, 0.5), 0.3, 20.0)
        trial.count(
            "connections of other workers lost",
            max(0, lost + len(load.failures) - at_victims),
        )
        trial.note(f"{kills} kills, {load.sent} messages, {at_victims} connections of killed workers")


@fault(
    "G2",
    "a worker dies at every start",
    "in 10 minutes at most 25 starts and 2 % CPU, one log line a start; the other workers serve",
    quick=False,
)
def worker_that_dies_at_start(trial: Trial) -> None:
    """Run the real supervisor with a child that exits at its start; it is given up after 61 s."""
    folder = trial.folder
    (folder / "die1").touch()
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "scripted_master.py"), str(folder), "3", "{}"],
            env=environment(),
            stderr=log,
        ) as process,
    ):
        try:
            started = cpu_seconds(process.pid)
            began = time.monotonic()
            wait = 600 if trial.whole else 75 if trial.full else 4
            time.sleep(wait)
            lines = [line for line in (folder / "log").read_text().splitlines() if "status 3" in line]
            used = 100 * (cpu_seconds(process.pid) - started) / (time.monotonic() - began)
            trial.count("starts", len(lines), 25)
            trial.check("master is alive", alive(process.pid))
            trial.time("CPU of the master", used, 2, 20, "%")
            trial.note(f"{wait} s; a worker is given up after 10 starts")
        finally:
            process.send_signal(signal.SIGINT)


@fault(
    "G3",
    "one worker is killed every second for a minute",
    "99 % of 20 messages a second arrive with one retry; the master lives",
    quick=False,
)
def workers_killed_again_and_again(trial: Trial) -> None:
    """kill -9 of a random worker once a second."""
    with Program("--workers=4") as program:
        program.wait_until_accepting(4)
        kills = 60 if trial.full else 3
        with LoadGenerator(program.address, 20, tries=2) as load:
            for _ in range(kills):
                if workers := program.workers():
                    os.kill(random.choice(workers), signal.SIGKILL)
                time.sleep(1)
        trial.rate("messages delivered", load.percent_delivered, 99, 90, "%")
        trial.check("master is alive", alive(program.pid))
        trial.note(f"{kills} kills, {load.sent} messages")


@fault(
    "G4",
    "kill -9 of the master",
    "listeners close within 1 s; sessions finish; no process is left after 31 s; an immediate restart works",
)
def killed_master(trial: Trial) -> None:
    """Keep an idle session and one inside a message, which ends after the restart."""
    with Program("--workers=4") as program:
        program.wait_until_accepting(4)
        workers = program.workers()
        with SMTPClient(program.address) as busy, SMTPClient(program.address) as idle:
            busy.start_data()
            began = time.monotonic()
            os.kill(program.pid, signal.SIGKILL)
            trial.time(
                "time until the port is closed", seconds_until_refused(program.address, began), 1.0, 10.0
            )
            trial.check("idle session got 421", idle.read_reply().startswith("421 4.3.2"))
            with Program(f"--port={program.port}") as again:
                deliver(again.address)
                trial.check("immediate restart works", True)
            trial.check("message in progress was accepted", busy.end_data().startswith("250"))
            ended = time.monotonic()
        wait_for(lambda: not any(map(alive, workers)), "no worker is left", 31)
        trial.time(
            "time from the end of that message to the end of the last process",
            time.monotonic() - ended,
            3.5,
            31,
        )


@fault(
    "G5",
    "TERM under load",
    "nothing accepted after 0.1 s; 421 4.3.2 for idle sessions; a message in progress is accepted; exit 0,"
    " pidfile removed; a second TERM ends it within 1 s",
)
def graceful_stop(trial: Trial) -> None:
    """Send 100 messages a second, with an idle session and one inside a message; then again with two TERM."""
    pidfile = trial.folder / "pid"
    with (
        Program("--workers=4", f"--pid={pidfile}") as program,
        LoadGenerator(program.address, 100, tries=1) as load,
    ):
        program.wait_until_accepting(4)
        with SMTPClient(program.address) as busy, SMTPClient(program.address) as idle:
            busy.start_data()
            began = time.monotonic()
            program.process.send_signal(signal.SIGTERM)
            trial.time("time until the port is closed", seconds_until_refused(program.address, began), 0.1, 5)
            load.stop()
            trial.check("idle session got 421", idle.read_reply().startswith("421 4.3.2"))
            time.sleep(0.5)
            trial.check("message in progress was accepted", busy.end_data().startswith("250"))
        trial.count("exit status", abs(program.process.wait(30)))
        trial.check("pidfile removed", not pidfile.exists())
    with Program("--workers=4") as program, SMTPClient(program.address) as busy:
        busy.start_data()
        program.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        began = time.monotonic()
        program.process.send_signal(signal.SIGTERM)
        program.process.wait(30)
        trial.time("time until the second TERM ends it", time.monotonic() - began, 1.0, 10.0)


@fault(
    "G6",
    "20 HUP in 20 s, 200 connections a second, 50 long sessions",
    "no connection or session is lost; the new configuration is used within 1 s; an invalid one changes "
    "nothing, and `reload` reports it",
)
def reloads(trial: Trial) -> None:
    """Change the host name before each HUP, and wait until a greeting has it."""
    times, pause = (20, 1.0) if trial.full else (2, 0.5)
    port, conf = free_port(), trial.folder / "blackhole.conf"
    base = f"host = 127.0.0.1\nport = {port}\nworkers = 2\n"
    conf.write_text(base + "hostname = mx0.test\n")
    options = f"--conf={conf}", f"--pid={trial.folder / 'pid'}"
    with Program(*options) as program, ExitStack() as stack:
        address = "127.0.0.1", port
        sessions = [stack.enter_context(SMTPClient(address)) for _ in range(50)]
        seconds = []
        with LoadGenerator(address, 200) as load:
            for number in range(1, times + 1):
                conf.write_text(base + f"hostname = mx{number}.test\n")
                began = time.monotonic()
                program.process.send_signal(signal.SIGHUP)
                wait_for(lambda name=f"mx{number}.test": greeted_name(address) == name, "the new name")  # type: ignore[misc]
                seconds.append(time.monotonic() - began)
                time.sleep(max(0.0, began + pause - time.monotonic()))
        trial.count("failed connections", len(load.failures))
        lost = 0
        for session in sessions:
            with suppress(OSError):
                lost += 1
                lost -= session.command("NOOP").startswith("250")
        trial.count("lost sessions", lost)
        trial.time("time until the new configuration is used, p99", percentile(seconds, 0.99), 1.0, 20.0)
        wait_for(lambda: program.output().count("reloaded: ") >= times, "the last reload is over")
        workers = program.workers()
        conf.write_text("port = none\n")
        done = run("reload", *options)
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reload failed" in program.output(), "an error")
        trial.count(
            "exit status of `reload` with an invalid configuration", done.returncode, 1, at_least=True
        )
        trial.count("log lines about it", program.output().count("reload failed"), 1)
        trial.count("workers replaced by it", len(set(program.workers()) - set(workers)))
        trial.note(f"{times} reloads, {load.sent} messages")


def greeted_name(address: Address) -> str:
    """Return the host name in the greeting."""
    with socket.create_connection(address, 10) as client:
        return client.recv(999).decode().split()[1]


@fault(
    "G7",
    "certificate replaced, then HUP; only root can read the key",
    "new handshakes use it within 1 s; old sessions live on",
)
def new_certificate(trial: Trial) -> None:
    """Try handshakes of a client that trusts only the new certificate until one succeeds."""
    old_certificate, port = issue(trial.folder), free_port()
    with (
        Program(f"--listen=127.0.0.1:{port},tls", *old_certificate.options) as program,
        socket.create_connection(("127.0.0.1", port), 30) as raw,
        old_certificate.client.wrap_socket(raw, server_hostname="127.0.0.1") as old,
    ):
        assert old.recv(999).startswith(b"220 ")
        new_certificate = issue(trial.folder)

        def used() -> bool:
            with suppress(ssl.SSLError), socket.create_connection(("127.0.0.1", port), 30) as plain:
                new_certificate.client.wrap_socket(plain, server_hostname="127.0.0.1").close()
                return True
            return False

        began = time.monotonic()
        program.process.send_signal(signal.SIGHUP)
        wait_for(used, "a handshake with the new certificate")
        trial.time("time until it is used", time.monotonic() - began, 1.0, 20.0)
        old.sendall(b"NOOP\r\n")
        trial.check("old session is alive", old.recv(999).startswith(b"250"))


@fault(
    "G8",
    "a worker is stopped (SIGSTOP)",
    "replaced within 12 s; other workers serve new connections",
    quick=False,
)
def stopped_worker(trial: Trial) -> None:
    """Stop one of two workers, and send one message after another until it is replaced."""
    with Program("--workers=2") as program:
        program.wait_until_accepting(2)
        victim = program.workers()[0]
        os.kill(victim, signal.SIGSTOP)
        # Until it has stopped, the kernel may wake it, and no other worker, for a new connection.
        wait_for(lambda: state(victim) == "T", "the worker is stopped")
        began = time.monotonic()
        seconds, failed = [], 0
        while time.monotonic() < began + 30 and (alive(victim) or len(program.workers()) < 2):
            start = time.monotonic()
            try:
                deliver(program.address, 10)
            except (OSError, UnexpectedReply):
                failed += 1
            seconds.append(time.monotonic() - start)
            time.sleep(0.02)
        trial.time("time until it is replaced", time.monotonic() - began, 12.0, 30.0)
        trial.count("failed messages", failed)
        trial.time("time of a message, p99", percentile(seconds, 0.99), 0.5, 10.0)
        trial.note(f"{len(seconds)} messages")


@fault(
    "G9",
    "500 random signals: HUP, USR1 and CHLD to the master, TERM and KILL to workers",
    "no zombie for more than 1 s; all workers are back within 5 s; descriptors +-2",
    quick=False,
)
def signal_storm(trial: Trial) -> None:
    """Send a signal every 20 ms."""
    source = random.Random(7)
    signals = 500 if trial.full else 50
    with Program("--workers=4", "--drain_timeout=1") as program:
        program.wait_until_accepting(4)
        before = len(descriptors(program.pid))
        for _ in range(signals):
            number = source.choice(
                (signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGTERM, signal.SIGKILL)
            )
            workers = program.workers()
            if number not in (signal.SIGTERM, signal.SIGKILL):
                program.process.send_signal(number)
            elif workers:
                with suppress(ProcessLookupError):
                    os.kill(source.choice(workers), number)
            time.sleep(0.02)
        began = time.monotonic()
        zombies: dict[int, float] = {}  # since when
        longest = complete_since = 0.0
        while time.monotonic() < began + 40:
            now = time.monotonic()
            pids = master_and_workers(program.pid)[1:]
            zombies = {pid: zombies.get(pid, now) for pid in pids if state(pid) == "Z"}
            longest = max([longest, *(now - since for since in zombies.values())])
            if program.is_accepting(4):
                complete_since = complete_since or now
                if now > complete_since + 2:
                    break
            else:
                complete_since = 0.0
            time.sleep(0.05)
        trial.time("longest time of a zombie", longest, 1.0, 10.0)
        trial.time(
            "time until all workers are back",
            complete_since - began if complete_since else 99,
            5.0,
            40.0,
        )
        trial.count("change of the descriptors of the master", abs(len(descriptors(program.pid)) - before), 2)
        deliver(program.address)
        trial.note(f"{signals} signals")


@fault(
    "G10",
    "a pidfile that is stale, garbage, of another process or a symbolic link",
    "starts, or refuses with a message; no foreign process is signalled, no link is followed",
    quick=False,
)
def pidfiles(trial: Trial) -> None:
    """Run the tests of the pidfile."""
    trial.pytest("test_pidfile.py")


@fault("G11", "PID 1 of a container", "TERM stops it; orphans are reaped", quick=False)
def first_process(trial: Trial) -> None:
    """Run the test that starts it as PID 1 of a PID namespace."""
    trial.pytest("test_program.py::test_pid_1_reaps_orphans_and_stops_at_sigterm")


@fault(
    "G12",
    "`start` in the background",
    "exit status 0 only if the port answers; otherwise a message about the port, certificate or user",
    quick=False,
)
def in_the_background(trial: Trial) -> None:
    """Run the tests that start a daemon, and those of wrong options and configurations."""
    trial.pytest("test_program.py::test_start_status_reload_restart_and_stop_of_a_daemon")
    failures = (
        "test_missing_certificate_exits_with_78",
        "test_unknown_user_exits_with_67",
        "test_busy_port_exits_with_71",
        "test_wrong_conf_file_exits_with_78_and_names_the_line",
        "test_file_that_cannot_be_created_exits_with_73",
    )
    trial.pytest(*(f"test_program.py::{name}" for name in failures))
