"""Trials of processes: killed, frozen, stopped and reloaded, while clients are there."""

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
from pathlib import Path

import trustme

from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import CELL_INDEX
from tests.faults.clients import Client, Load, Refused, cpu, deliver, family, percentile
from tests.faults.row import Trial, row
from tests.program import ROOT, Program, alive, descriptors, environment, free_port, run, state, wait_for


def accepting(program: Program) -> int:
    """How many workers take connections now."""
    return Counters.of(program.pid).snapshot().cells[CELL_INDEX["accepting"]]


def settled(program: Program, workers: int, without: int = 0) -> None:
    """Just so many workers are there, and all of them accept."""

    def look() -> bool:
        pids = program.workers()
        return len(pids) == workers and without not in pids and accepting(program) == workers

    wait_for(look, f"{workers} workers", 30)


def refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 5).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def until_refused(address: tuple[str, int], began: float) -> float:
    """Seconds from `began` until nobody listens any more."""
    wait_for(lambda: refused(address), "the port is closed", 30)
    return time.monotonic() - began


@row(
    "G1",
    "kill -9 of a worker under 200 messages a second",
    "accepts again within 1 s; nobody who waits is lost, nor any session of another worker",
)
def killed_worker(trial: Trial) -> None:
    """Connections wait while all workers are stopped; one is killed, others go on. Then kills under load.

    None is killed in its first second, after which it would be taken for one that cannot start.
    """
    with Program("--workers=4") as program, ExitStack() as stack:
        settled(program, 4)
        workers = program.workers()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        waiting = [stack.enter_context(socket.create_connection(program.address, 30)) for _ in range(100)]
        os.kill(workers[0], signal.SIGKILL)
        for pid in workers[1:]:
            os.kill(pid, signal.SIGCONT)
        lost = 0
        for one in waiting:
            try:
                lost += not one.recv(999).startswith(b"220 ")
            except OSError:
                lost += 1
        trial.count("lost of 100 that waited to be accepted:", lost)
        stack.close()
        settled(program, 4)
        took, torn, held = [], 0, 0
        times = 20 if trial.full else 3
        with Load(program.address, 200) as load:
            for _ in range(times):
                sessions = [Client(program.address) for _ in range(16)]
                victim = program.workers()[0]  # the oldest
                os.kill(victim, signal.SIGSTOP)  # so that it takes nobody between this count and its death
                time.sleep(0.05)
                snapshot = Counters.of(program.pid).snapshot()
                held += sum(worker.open for worker in snapshot.workers if worker.pid == victim)
                began = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                settled(program, 4, without=victim)
                took.append(time.monotonic() - began)
                time.sleep(0.5)
                for session in sessions:
                    with session, suppress(OSError):
                        torn += 1
                        torn -= session.say("NOOP").startswith("250")
        trial.time("accepts again, slowest of so many kills,", max(took), 1.0, 20.0)
        trial.time("median", percentile(took, 0.5), 0.3, 20.0)
        trial.count(
            "connections lost beyond those of the workers that were killed:",
            max(0, torn + len(load.failed) - held),
        )
        trial.note(
            f"{times} kills, {load.sent} messages, {held} connections were at the workers that were killed"
        )


@row(
    "G2",
    "a worker dies whenever it starts",
    "in 10 minutes at most 25 starts and 2 % CPU, one line a start, the others serve",
    quick=False,
)
def dies_at_start(trial: Trial) -> None:
    """The real supervisor with a child that exits as it begins: its place is given up after 61 s."""
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
            started = cpu(process.pid)
            began = time.monotonic()
            wait = 600 if trial.whole else 75 if trial.full else 4
            time.sleep(wait)
            lines = [line for line in (folder / "log").read_text().splitlines() if "status 3" in line]
            used = 100 * (cpu(process.pid) - started) / (time.monotonic() - began)
            trial.count("starts", len(lines), 25)
            trial.count("master alive", int(alive(process.pid)), 1, least=True)
            trial.time("CPU of the master", used, 2, 20, "%")
            trial.note(f"{wait} s; a place is given up after 10 starts")
        finally:
            process.send_signal(signal.SIGINT)


@row(
    "G3",
    "something kills a worker once a second for a minute",
    "99 % of 20 messages a second arrive with one retry; the master lives",
    quick=False,
)
def poisoned(trial: Trial) -> None:
    """kill -9 of any worker once a second."""
    with Program("--workers=4") as program:
        settled(program, 4)
        kills = 60 if trial.full else 3
        with Load(program.address, 20, tries=2) as load:
            for _ in range(kills):
                if workers := program.workers():
                    os.kill(random.choice(workers), signal.SIGKILL)
                time.sleep(1)
        trial.rate("arrived", 100 * (1 - len(load.failed) / load.sent), 99, 90, "%")
        trial.count("master alive", int(alive(program.pid)), 1, least=True)
        trial.note(f"{kills} kills, {load.sent} messages")


@row(
    "G4",
    "kill -9 of the master",
    "listeners closed within 1 s; sessions finish; no process left 31 s later; an immediate restart works",
)
def dead_master(trial: Trial) -> None:
    """One session is in the middle of a message, one is idle; the message ends when the restart is over."""
    with Program("--workers=4") as program:
        settled(program, 4)
        workers = program.workers()
        with Client(program.address) as busy, Client(program.address) as idle:
            busy.begin()
            began = time.monotonic()
            os.kill(program.pid, signal.SIGKILL)
            trial.time("port closed after", until_refused(program.address, began), 1.0, 10.0)
            trial.count("idle sessions told 421:", int(idle.hear().startswith("421 4.3.2")), 1, least=True)
            with Program(f"--port={program.port}") as again:
                deliver(again.address)
                trial.count("restarts at once", 1, 1, least=True)
            trial.count(
                "messages under way that were taken:", int(busy.end().startswith("250")), 1, least=True
            )
            ended = time.monotonic()
        wait_for(lambda: not any(map(alive, workers)), "no worker is left", 31)
        trial.time("last process gone so long after that message", time.monotonic() - ended, 3.5, 31)


@row(
    "G5",
    "TERM under load",
    "no more accepted after 0.1 s; 421 4.3.2 for idle sessions; a message under way is taken; exit 0,"
    " pidfile gone; a second TERM ends it within 1 s",
)
def told_to_stop(trial: Trial) -> None:
    """100 messages a second, an idle session and one in a message; then again with TERM twice."""
    pidfile = trial.folder / "pid"
    with Program("--workers=4", f"--pid={pidfile}") as program, Load(program.address, 100, tries=1) as load:
        settled(program, 4)
        with Client(program.address) as busy, Client(program.address) as idle:
            busy.begin()
            began = time.monotonic()
            program.process.send_signal(signal.SIGTERM)
            trial.time("port closed after", until_refused(program.address, began), 0.1, 5)
            load.stop()
            trial.count("idle sessions told 421:", int(idle.hear().startswith("421 4.3.2")), 1, least=True)
            time.sleep(0.5)
            trial.count(
                "messages under way that were taken:", int(busy.end().startswith("250")), 1, least=True
            )
        trial.count("exit code", abs(program.process.wait(30)))
        trial.count("pidfile left", int(pidfile.exists()))
    with Program("--workers=4") as program, Client(program.address) as busy:
        busy.begin()
        program.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        began = time.monotonic()
        program.process.send_signal(signal.SIGTERM)
        program.process.wait(30)
        trial.time("over after a second TERM", time.monotonic() - began, 1.0, 10.0)


@row(
    "G6",
    "20 HUP in 20 s with 200 connections a second and 50 long sessions",
    "no connection fails, no session is lost, the new configuration holds within 1 s; an invalid one "
    "changes nothing, and `reload` says so",
)
def reloads(trial: Trial) -> None:
    """Each HUP changes the host name; the time is until a greeting has it."""
    times, pause = (20, 1.0) if trial.full else (2, 0.5)
    port, conf = free_port(), trial.folder / "blackhole.conf"
    base = f"host = 127.0.0.1\nport = {port}\nworkers = 2\n"
    conf.write_text(base + "hostname = mx0.test\n")
    options = f"--conf={conf}", f"--pid={trial.folder / 'pid'}"
    with Program(*options) as program, ExitStack() as stack:
        address = "127.0.0.1", port
        sessions = [stack.enter_context(Client(address)) for _ in range(50)]
        took = []
        with Load(address, 200) as load:
            for number in range(1, times + 1):
                conf.write_text(base + f"hostname = mx{number}.test\n")
                began = time.monotonic()
                program.process.send_signal(signal.SIGHUP)
                wait_for(lambda name=f"mx{number}.test": greets(address) == name, "the new name")  # type: ignore[misc]
                took.append(time.monotonic() - began)
                time.sleep(max(0.0, began + pause - time.monotonic()))
        trial.count("failed connections", len(load.failed))
        lost = 0
        for session in sessions:
            with suppress(OSError):
                lost += 1
                lost -= session.say("NOOP").startswith("250")
        trial.count("lost sessions", lost)
        trial.time("new configuration after, p99,", percentile(took, 0.99), 1.0, 20.0)
        wait_for(lambda: program.output().count("reloaded: ") >= times, "the last reload is over")
        workers = program.workers()
        conf.write_text("port = none\n")
        done = run("reload", *options)
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reload failed" in program.output(), "an error")
        trial.count("exit code of `reload` with an invalid one", done.returncode, 1, least=True)
        trial.count("lines about it", program.output().count("reload failed"), 1)
        trial.count("workers replaced by it", len(set(program.workers()) - set(workers)))
        trial.note(f"{times} reloads, {load.sent} messages")


def greets(address: tuple[str, int]) -> str:
    """Who the server says it is."""
    with socket.create_connection(address, 10) as client:
        return client.recv(999).decode().split()[1]


def issue(folder: Path) -> ssl.SSLContext:
    """A new certificate for 127.0.0.1 in folder/cert.pem and key.pem, and who believes it and no other."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    (folder / "key.pem").chmod(0o600)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def secured(folder: Path) -> tuple[str, str]:
    """The options that turn TLS on with what `issue` left there."""
    return f"--ssl_cert={folder / 'cert.pem'}", f"--ssl_key={folder / 'key.pem'}"


@row(
    "G7",
    "certificate replaced, then HUP, key for root alone",
    "new handshakes use it within 1 s, old sessions live on",
)
def new_certificate(trial: Trial) -> None:
    """Handshakes that believe only the new certificate, until one succeeds."""
    first, port = issue(trial.folder), free_port()
    with (
        Program(f"--listen=127.0.0.1:{port},tls", *secured(trial.folder)) as program,
        socket.create_connection(("127.0.0.1", port), 30) as raw,
        first.wrap_socket(raw, server_hostname="127.0.0.1") as old,
    ):
        assert old.recv(999).startswith(b"220 ")
        second = issue(trial.folder)

        def used() -> bool:
            with suppress(ssl.SSLError), socket.create_connection(("127.0.0.1", port), 30) as plain:
                second.wrap_socket(plain, server_hostname="127.0.0.1").close()
                return True
            return False

        began = time.monotonic()
        program.process.send_signal(signal.SIGHUP)
        wait_for(used, "a handshake with the new certificate")
        trial.time("used after", time.monotonic() - began, 1.0, 20.0)
        old.sendall(b"NOOP\r\n")
        trial.count("old sessions that live:", int(old.recv(999).startswith(b"250")), 1, least=True)


@row(
    "G8",
    "a worker is frozen (SIGSTOP)",
    "replaced within 12 s, new connections are served by others meanwhile",
    quick=False,
)
def frozen_worker(trial: Trial) -> None:
    """One of two workers is stopped; messages go on, one after the other, until there is another worker."""
    with Program("--workers=2") as program:
        settled(program, 2)
        victim = program.workers()[0]
        os.kill(victim, signal.SIGSTOP)
        # Until it has stopped the kernel may wake it, and nobody else, for a client.
        wait_for(lambda: state(victim) == "T", "it is frozen")
        began = time.monotonic()
        taken, failed = [], 0
        while time.monotonic() < began + 30 and (alive(victim) or len(program.workers()) < 2):
            start = time.monotonic()
            try:
                deliver(program.address, 10)
            except (OSError, Refused):
                failed += 1
            taken.append(time.monotonic() - start)
            time.sleep(0.02)
        trial.time("replaced after", time.monotonic() - began, 12.0, 30.0)
        trial.count("failed messages", failed)
        trial.time("a message took, p99,", percentile(taken, 0.99), 0.5, 10.0)
        trial.note(f"{len(taken)} messages meanwhile")


@row(
    "G9",
    "500 random signals: HUP, USR1, CHLD to the master, TERM and kill -9 to workers",
    "no zombie for more than 1 s, 5 s later as many workers as there should be, descriptors +-2",
    quick=False,
)
def signal_storm(trial: Trial) -> None:
    """A signal each 20 ms."""
    dice = random.Random(7)
    times = 500 if trial.full else 50
    with Program("--workers=4", "--drain_timeout=1") as program:
        settled(program, 4)
        before = len(descriptors(program.pid))
        for _ in range(times):
            number = dice.choice(
                (signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGTERM, signal.SIGKILL)
            )
            workers = program.workers()
            if number not in (signal.SIGTERM, signal.SIGKILL):
                program.process.send_signal(number)
            elif workers:
                with suppress(ProcessLookupError):
                    os.kill(dice.choice(workers), number)
            time.sleep(0.02)
        began = time.monotonic()
        zombies: dict[int, float] = {}
        longest = 0.0
        calm = 0.0
        while time.monotonic() < began + 40:
            now = time.monotonic()
            pids = family(program.pid)[1:]
            undead = [pid for pid in pids if state(pid) == "Z"]
            zombies = {pid: zombies.get(pid, now) for pid in undead}
            longest = max([longest, *(now - since for since in zombies.values())])
            if len(program.workers()) == 4 and accepting(program) == 4:
                calm = calm or now
                if now > calm + 2:
                    break
            else:
                calm = 0.0
            time.sleep(0.05)
        trial.time("longest zombie", longest, 1.0, 10.0)
        trial.time("as many workers as there should be after", calm - began if calm else 99, 5.0, 40.0)
        trial.count("descriptors of the master, difference,", abs(len(descriptors(program.pid)) - before), 2)
        deliver(program.address)
        trial.note(f"{times} signals")


@row(
    "G10",
    "a pidfile that is stale, garbage, a stranger's or a link",
    "starts, or refuses with a line; no stranger is signalled, no link is followed",
    quick=False,
)
def pidfiles(trial: Trial) -> None:
    """The tests of the pidfile."""
    trial.tests("test_pidfile.py")


@row("G11", "as PID 1 of a container", "TERM stops it, strangers are buried", quick=False)
def first_process(trial: Trial) -> None:
    """A test runs it as PID 1 of a PID namespace."""
    trial.tests("test_program.py::test_pid_1_reaps_orphans_and_stops_at_sigterm")


@row(
    "G12",
    "`start` in the background",
    "0 only when the port answers; else not 0, and a message for a port, certificate or user that cannot be",
    quick=False,
)
def in_the_background(trial: Trial) -> None:
    """The program's tests that start a daemon, and those of every operator's mistake."""
    trial.tests("test_program.py::test_start_status_reload_restart_and_stop_of_a_daemon")
    failures = (
        "test_missing_certificate_exits_with_78",
        "test_unknown_user_exits_with_67",
        "test_busy_port_exits_with_71",
        "test_wrong_conf_file_exits_with_78_and_names_the_line",
        "test_file_that_cannot_be_created_exits_with_73",
    )
    trial.tests(*(f"test_program.py::{name}" for name in failures))
