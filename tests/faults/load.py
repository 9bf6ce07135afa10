"""Trials of load: crowds, streams without end, clients that never read, and resources that run out."""

from __future__ import annotations

import select
import socket
import subprocess
import time
from contextlib import suppress

from blackhole.metrics.counters import Counters
from tests.faults.clients import (
    RESET,
    Address,
    Client,
    Load,
    Refused,
    blind,
    cpu,
    crowd,
    deliver,
    dial,
    family,
    hello,
    noops,
    percentile,
    pss,
    source,
    streamers,
    visits,
)
from tests.faults.processes import issue, secured, settled
from tests.faults.row import Trial, row
from tests.program import SCRIPT, Program, descriptors, free_port, wait_for

MEGABYTE = 1 << 20


def limited(files: int) -> tuple[str, ...]:
    """The program with so many descriptors for each process."""
    return ("prlimit", f"--nofile={files}:{files}", *SCRIPT)


def count_open(program: Program) -> int:
    return Counters.of(program.pid).snapshot().open


@row(
    "L1",
    "10,000 idle sessions",
    "all greeted within 10 s, at most 6 KiB each, a live session's NOOP answered within 20 ms (p99)",
)
def idle_sessions(trial: Trial) -> None:
    """Connections in one process, PSS of master and 4 workers before and after."""
    count = 10_000 if trial.full else 1000
    with Program("--workers=4", "--backlog=4096") as program, crowd() as sockets:
        settled(program, 4)
        dial(program.address, 40, sockets)
        before = pss(*family(program.pid))
        took = dial(program.address, count, sockets)
        each = (pss(*family(program.pid)) - before) / count
        with Client(program.address) as live:
            answers = noops(live, 500)
        trial.time("greeted after", took, 10.0, 60.0)
        trial.size("memory of each", each, 6, 30)
        trial.time("NOOP p99", 1000 * percentile(answers, 0.99), 20, 2000, "ms")
        trial.note(f"{count} sessions")


@row(
    "L2",
    "2,000 idle TLS sessions",
    "at most 30 KiB each, handshake and greeting in 5 ms (median, one after the other)",
    quick=False,
)
def idle_tls_sessions(trial: Trial) -> None:
    """TLS from the first octet, a P-256 key; the client's share of the handshake is in the time."""
    count = 2000 if trial.full else 100
    port = free_port()
    issue(trial.folder)
    with (
        Program("--workers=4", f"--listen=127.0.0.1:{port},tls", *secured(trial.folder)) as program,
        crowd() as sockets,
    ):
        settled(program, 4)
        context, taken = blind(), []
        for number in range(count + 40):
            if number == 40:
                before = pss(*family(program.pid))
            began = time.perf_counter()
            one = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 30))
            assert one.recv(999).startswith(b"220 ")
            taken.append(time.perf_counter() - began)
            sockets.append(one)
        trial.size("memory of each", (pss(*family(program.pid)) - before) / count, 30, 60)
        trial.time("handshake and greeting, median,", 1000 * percentile(taken, 0.5), 5, 500, "ms")
        trial.note(f"{count} sessions")


def stream(trial: Trial, block: bytes) -> None:
    """A message of ten gigabytes, made of the same block, for one worker."""
    size = 10_000_000_000 if trial.full else 200_000_000
    with Program("--workers=1", "--message_size_limit=0") as program, Client(program.address) as client:
        (worker,) = program.workers()
        client.mail(block + b"\r\n")
        before = pss(worker)
        client.begin()
        began = time.monotonic()
        for _ in range(size // len(block)):
            client.send(block)
        client.send(b"\r\n")
        trial.count("messages taken:", int(client.end().startswith("250")), 1, least=True)
        took = time.monotonic() - began
        trial.size("growth", max(0.0, pss(worker) - before), 1024, 4096)
        trial.rate("speed", size / took / 1e6, 300, 10, "MB/s")
        trial.note(f"{size / 1e9:g} GB in {took:.1f} s")


@row("L3", "a body of 10 GB", "grows by less than 1 MiB, at 300 MB/s or more")
def endless_body(trial: Trial) -> None:
    """Lines of 1000 octets over loopback; sender and worker share the machine."""
    stream(trial, (b"x" * 998 + b"\r\n") * 1049)


@row("L4", "a single line of 10 GB in a body", "grows by less than 1 MiB, as fast")
def endless_line(trial: Trial) -> None:
    """As L3, without a line end."""
    stream(trial, b"x" * MEGABYTE)


@row("L5", "a command of 1 MiB without an end", "500 and closed within 64 KiB, which is all that may be kept")
def endless_command(trial: Trial) -> None:
    """Sent in pieces of 1 KiB; from 64 KiB on, each after time enough for an answer."""
    with (
        Program("--workers=1") as program,
        Client(program.address) as client,
        Client(program.address) as first,
    ):
        (worker,) = program.workers()
        first.send(b"x" * 70_000)  # what the first such client costs, it costs once
        first.rest()
        before = pss(worker)
        sent = 0
        heard_of = select.poll()
        heard_of.register(client.socket, select.POLLIN)
        while sent < MEGABYTE and not heard_of.poll(200 if sent > 65536 else 0):
            client.send(b"x" * 1024)
            sent += 1024
        heard = client.rest()
        trial.count(
            "answered with 500 and closed:",
            int(heard.startswith(b"500 5.5.2 ") and heard.endswith(b"\n")),
            1,
            least=True,
        )
        trial.size("sent until then", sent / 1024, 66, 1024)
        trial.size("growth", max(0.0, pss(worker) - before), 64, 1024)


@row(
    "L6",
    "a client that sends 64 MiB of NOOP and never reads",
    "is not read any more, grows by less than 256 KiB, closed after 60 s",
    quick=False,
)
def never_reads(trial: Trial) -> None:
    """Sends until nothing is taken for 1 s; write_timeout is 60 s, for the small trial 2."""
    patience = 60 if trial.full else 2
    with Program("--workers=1", f"--write_timeout={patience}") as program, Client(program.address) as client:
        (worker,) = program.workers()
        with Client(program.address) as reader:  # what the first flood costs, it costs once
            for _ in range(40):
                reader.send(b"NOOP\r\n" * 4096)
                for _ in range(4096):
                    reader.hear()
        before = pss(worker)
        client.socket.setblocking(False)
        noop, sent, stuck = b"NOOP\r\n" * 4096, 0, 0.0
        began = last = time.monotonic()
        while sent < 64 * MEGABYTE and last > time.monotonic() - 1:
            try:
                sent += client.socket.send(noop)
                last = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
        stuck = last
        trial.size("growth", max(0.0, pss(worker) - before), 256, 1024)
        trial.size("taken in before it stopped to read", sent / MEGABYTE, 64, 64, "MiB")
        wait_for(lambda: count_open(program) == 0, "it is closed", patience + 30)
        trial.time("closed after", time.monotonic() - stuck, patience + 2, patience + 30)
        trial.note(f"{time.monotonic() - began:.0f} s in all")


@row(
    "L7",
    "1 and 16 peers that stream flat out",
    "a neighbour in the same worker has its NOOP answered within 20 and 200 ms (p99)",
)
def beside_streams(trial: Trial) -> None:
    """One worker; the streams come from a process of their own."""
    for count, goal in ((1, 20.0), (16, 200.0)):
        with Program("--workers=1", "--message_size_limit=0") as program, Client(program.address) as client:
            with streamers(program.address, count):
                time.sleep(0.3)
                answers = noops(client, 1000 if trial.full else 100, 0.002)
            trial.time(f"NOOP p99 beside {count}", 1000 * percentile(answers, 0.99), goal, 5000, "ms")


@row(
    "L8",
    "256 descriptors, 1,000 connections",
    "less than 10 % CPU, a log line in 10 s at most, old sessions live, the surplus hears 421, "
    "accepting again 1.5 s after there is room",
    quick=False,
)
def descriptors_run_out(trial: Trial) -> None:
    """`prlimit --nofile=256`, one worker, the crowd stays for 11 s."""
    stay = 11 if trial.full else 2
    with Program("--workers=1", command=limited(256)) as program, Client(program.address) as old:
        (worker,) = program.workers()
        with crowd() as sockets:
            dial(program.address, 1000, sockets)
            heard = [answer(one) for one in sockets]
            trial.count(
                "of 1,000, neither greeted nor told 421:",
                sum(not one.startswith((b"220 ", b"421 4.3.2")) for one in heard),
            )
            before, began, lives = cpu(worker), time.monotonic(), True
            for _ in range(stay):  # who is idle for 10 s is closed under stress, and is meant to be
                time.sleep(1)
                lives = lives and old.say("NOOP").startswith("250")
            trial.time(
                "CPU while they stay", 100 * (cpu(worker) - before) / (time.monotonic() - began), 10, 60, "%"
            )
            trial.count("old sessions that live:", int(lives), 1, least=True)
        began = time.monotonic()
        wait_for(lambda: answers(program.address), "there is room again")
        trial.time("accepting again after", time.monotonic() - began, 1.5, 20)
        lines = [line for line in program.output().splitlines() if " WARNING " in line]
        trial.count("lines in the log", len(lines), 1 + stay // 10, bound=3)
        trial.note(f"{sum(one.startswith(b'220 ') for one in heard)} were served")


def answer(one: socket.socket) -> bytes:
    one.settimeout(10)
    with suppress(OSError):
        return one.recv(999)
    return b""


def answers(address: tuple[str, int]) -> bool:
    with suppress(OSError, Refused), Client(address, patience=2):
        return True
    return False


@row(
    "L9",
    "clients that send an octet now and then, until all places are taken",
    "closed at the deadline of a command, which is 10 s under stress; stress begins within 1 s; 99 % "
    "of normal messages get through",
    quick=False,
)
def tricklers(trial: Trial) -> None:
    """5,000 clients (small: 400) for 4 workers with as many places; stress_timeout 10 s (small: 2 s). In full
    then as many where there is room for all: an octet every 10 s, and timeout as it is, 300 s."""
    count, patience = (5000, 10) if trial.full else (400, 2)
    options = f"--max_connections={count // 4}", f"--stress_timeout={patience}", "--backlog=4096"
    with Program("--workers=4", *options) as program, crowd() as sockets:
        settled(program, 4)
        dial(program.address, int(count * 0.93), sockets)
        began = time.monotonic()
        for one in sockets:
            with suppress(OSError):
                one.send(b"N")
        wait_for(lambda: "hurry" in program.output(), "stress")
        trial.time("stress after", time.monotonic() - began, 1.2, 10)
        with Load(program.address, 20, tries=3) as load:
            trickled = 0
            while time.monotonic() < began + patience + 15 and count_open(program) > count // 2:
                for one in sockets[trickled % 10 :: 10]:
                    with suppress(OSError):
                        one.send(b"O")
                trickled += 1
                time.sleep(1)
        trial.time("closed after", time.monotonic() - began, patience + 4, patience + 15)
        trial.rate(
            "normal messages that got through", 100 * (1 - len(load.failed) / max(load.sent, 1)), 99, 50, "%"
        )
        trial.note(f"{int(count * 0.93)} of {count} places, {load.sent} messages with up to three tries")
    if trial.whole:
        tricklers_with_room(trial, count)


def tricklers_with_room(trial: Trial, count: int) -> None:
    """The other half of it: no stress, so each is borne until the deadline of its command."""
    with Program("--workers=4", "--backlog=4096") as program, crowd() as sockets:
        settled(program, 4)
        dial(program.address, count, sockets)
        began = time.monotonic()
        with Load(program.address, 20, tries=1) as load:
            while count_open(program) > count // 100 and time.monotonic() < began + 360:
                for one in sockets:
                    with suppress(OSError):
                        one.send(b"N")
                time.sleep(10)
        trial.time("without stress closed after", time.monotonic() - began, 320, 360)
        trial.rate("messages meanwhile", 100 * (1 - len(load.failed) / max(load.sent, 1)), 99, 50, "%")
        trial.note(f"{count} clients for 300 s, {load.sent} messages with one try")


@row(
    "L10",
    "1,000 clients that say STARTTLS and then nothing, or half a ClientHello",
    "closed after 30 s, at most 30 KiB each",
    quick=False,
)
def silent_handshakes(trial: Trial) -> None:
    """tls_timeout as it is (small: 2 s)."""
    count, patience = (1000, 30) if trial.full else (100, 2)
    issue(trial.folder)
    with (
        Program(
            "--workers=2",
            "--ssl_port=" + str(free_port()),
            f"--tls_timeout={patience}",
            *secured(trial.folder),
        ) as program,
        crowd() as sockets,
    ):
        settled(program, 2)
        for _ in range(40):  # what the first handshakes cost, they cost once
            with Client(program.address) as first:
                first.starttls()
        dial(program.address, count, sockets)
        before = pss(*family(program.pid))
        began = time.monotonic()
        words = hello()
        each = []
        for said in (b"STARTTLS\r\n", words[: len(words) // 2], words[len(words) // 2 :]):
            for one in sockets:
                one.setblocking(True)
                one.send(said)
            time.sleep(2 if trial.full else 0.5)
            each.append(max(0.0, pss(*family(program.pid)) - before) / count)
        trial.size("memory of each", each[0], 30, 60)
        trial.size("of each with half a ClientHello", each[1], 30, 60)
        trial.note(f"{each[2]:.3g} KiB with a whole one, where OpenSSL begins")
        taken = []
        for _ in range(100):
            start = time.monotonic()
            deliver(program.address)
            taken.append(time.monotonic() - start)
        trial.time("a message meanwhile took, slowest,", max(taken), 1.0, 10.0)
        workers = program.workers()
        wait_for(lambda: count_open(program) == 0, "all are closed", patience + 30)
        trial.time("closed after", time.monotonic() - began, patience + 2.5, patience + 30)
        trial.count("workers that were replaced", len({*program.workers()} - {*workers}))
        trial.count("tracebacks", program.output().count("Traceback"))


STATES = (
    b"", b"NO", b"EHLO c.test\r\n", b"MAIL FROM:<a@b.test>\r\n", b"DATA\r\n", b"DATA\r\nSubject: x\r\n",
    b"DATA\r\nx\r\n.", b"NOOP\r\n" * 100, b"STARTTLS\r\n", b"STARTTLS\r\n\x16\x03\x01",
    b"\x16\x03\x01\x02\x00", b"QUIT\r\n",
)  # fmt: skip


def offend(address: Address, count: int) -> None:
    """So many rude ends, in all states in turn: one in four just leaves, the others reset; one in five has
    not waited for the greeting."""
    for batch in visits(address, count):
        for number, one in batch:
            if number % 5:
                one.recv(999)
            one.sendall(STATES[number % len(STATES)])
            if number // len(STATES) % 4:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


@row(
    "L11",
    "clients that reset or vanish in every state; 10^6 connections",
    "descriptors +-2, memory +5 MiB, no traceback",
)
def rude_clients(trial: Trial) -> None:
    """60 rude ends in 12 states; then connections, of which every other one is rude and every other one
    brings a message (in full 10^6; 30,000; small: 600); then 60 more."""
    half = 500_000 if trial.whole else 15_000 if trial.full else 300
    issue(trial.folder)
    with Program("--workers=2", f"--ssl_port={free_port()}", *secured(trial.folder)) as program:
        settled(program, 2)

        def measure() -> tuple[int, float]:
            wait_for(lambda: count_open(program) == 0, "all are gone")
            pids = family(program.pid)
            return sum(len(descriptors(pid)) for pid in pids), pss(*pids)

        offend(program.address, 60)
        files, memory = measure()
        began = time.monotonic()
        if trial.full:
            with subprocess.Popen(source(program.address, half)) as good:
                offend(program.address, half)
                trial.count("exit code of smtp-source", good.wait(3600))
        else:
            offend(program.address, half)
            for _ in range(half):
                deliver(program.address)
        took = time.monotonic() - began
        offend(program.address, 60)
        files_then, memory_then = measure()
        trial.count("descriptors, difference,", abs(files_then - files), 2)
        trial.size("growth", max(0.0, memory_then - memory), 5 * 1024, 20 * 1024)
        trial.count("tracebacks", program.output().count("Traceback"))
        counted = Counters.of(program.pid).snapshot()
        trial.count("messages beside those that were sent:", abs(counted.messages["accepted"] - half))
        trial.note(f"{sum(counted.connections.values()):,} connections in {took:.0f} s")


@row(
    "L12",
    "one client opens 500",
    "50 are served, the rest hears 421 4.7.0 within 0.1 s; who is trusted is exempt",
    quick=False,
)
def one_client(trial: Trial) -> None:
    """--public without anybody trusted; then as it is, where loopback is."""
    with Program("--workers=4", "--public", "--trusted=none") as program, crowd() as sockets:
        settled(program, 4)
        time.sleep(1.2)
        heard, taken = [], []
        for _ in range(500):
            began = time.monotonic()
            sockets.append(socket.create_connection(program.address, 10))
            heard.append(sockets[-1].recv(999))
            taken.append(time.monotonic() - began)
        trial.count("served", sum(one.startswith(b"220 ") for one in heard), 50)
        trial.count("told 421 4.7.0", sum(one.startswith(b"421 4.7.0 ") for one in heard), 450, least=True)
        trial.time("answer, p99,", percentile(taken, 0.99), 0.1, 5.0)
    with Program("--workers=4", "--public") as program, crowd() as sockets:
        dial(program.address, 500, sockets)
        trial.count(
            "refused of 500 who are trusted:", sum(not answer(one).startswith(b"220 ") for one in sockets)
        )


@row("L13", "10^6 host names in EHLO, 10^5 networks", "memory +4 MiB")
def many_names(trial: Trial) -> None:
    """Names one after the other in one session; clients of as many /64 as are noted, by PROXY headers."""
    names, networks = (1_000_000, 100_000) if trial.full else (20_000, 100)
    port = free_port()
    options = (
        f"--listen=127.0.0.1:{port},proxy",
        "--proxy_from=127.0.0.0/8",
        "--trusted=none",
        "--client_connections=9",
    )
    with Program("--workers=1", *options) as program:
        (worker,) = program.workers()
        address = "127.0.0.1", port

        def visit(number: int, client: socket.socket) -> None:
            client.sendall(
                f"PROXY TCP6 2001:{number >> 16:x}:{number & 0xFFFF:x}::1 2001:db8::2 9 25\r\n".encode()
            )

        def come(count: int) -> None:
            for batch in visits(address, count):
                for number, one in batch:
                    visit(number, one)
                for _, one in batch:
                    assert one.recv(999).startswith(b"220 ")
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

        come(100)
        before = pss(worker)
        with socket.create_connection(address, 10) as client:
            visit(1, client)
            assert client.recv(999).startswith(b"220 ")
            for start in range(0, names, 1000):
                client.sendall(
                    b"".join(b"EHLO host%d.test\r\n" % name for name in range(start, start + 1000))
                )
                left = 1000
                while left:
                    left -= client.recv(1 << 20).count(b"250 ")
        come(networks)
        trial.size("growth", max(0.0, pss(worker) - before), 4096, 16384)
        trial.note(f"{names} names, {networks} networks")


@row(
    "L14",
    "an exception at every await",
    "421 4.3.0 and closed, one traceback in the log, no descriptor lost, the worker lives",
    quick=False,
)
def exceptions(trial: Trial) -> None:
    """The tests that have each await of a connection fail."""
    trial.tests(
        "test_limits.py::test_a_fault_at_any_await_costs_one_connection",
        "test_server.py::test_a_fault_of_ours_costs_one_connection",
    )


FULL = 64 * MEGABYTE


@row("L16", "the disk with the log is full", "mail goes on")
def full_disk(trial: Trial) -> None:
    """The log has the size that RLIMIT_FSIZE allows, so each write to it fails; every line is logged."""
    log = trial.folder / "log"
    trial.folder.chmod(0o1777)
    with open(log, "w") as file:
        file.truncate(FULL)  # a hole, which takes no room
    command = ("prlimit", f"--fsize={FULL}", *SCRIPT)
    with Program("--workers=2", f"--log={log}", "--debug", command=command) as program:
        settled(program, 2)
        failed = 0
        for _ in range(500 if trial.full else 50):
            try:
                deliver(program.address)
            except (OSError, Refused):
                failed += 1
        trial.count("messages that failed", failed)
        trial.count("octets that were logged meanwhile", log.stat().st_size - FULL)
        trial.count("workers that died", 2 - len(program.workers()))
