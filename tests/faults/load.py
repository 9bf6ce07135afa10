"""Faults of load: many connections, endless streams, clients that never read, exhausted resources."""

from __future__ import annotations

import select
import socket
import subprocess
import time
from contextlib import suppress

from tests.certificates import issue
from tests.faults.fault import Trial, fault
from tests.faults.load_clients import (
    LoadGenerator,
    connection_batches,
    endless_senders,
    many_sockets,
    noop_times,
    open_connections,
    percentile,
)
from tests.postfix import smtp_source
from tests.program import SCRIPT, Program, descriptors, free_port, wait_for
from tests.resource_usage import cpu_seconds, master_and_workers, proportional_memory
from tests.smtp_client import (
    Address,
    SMTPClient,
    UnexpectedReply,
    client_hello,
    deliver,
    reset_on_close,
    unverified_tls,
)

MEGABYTE = 1 << 20


def with_descriptors(limit: int) -> tuple[str, ...]:
    """Return the command of the program with a limit of open files for each process."""
    return ("prlimit", f"--nofile={limit}:{limit}", *SCRIPT)


def growth(before: float, *pids: int) -> float:
    """Return the KiB by which the memory of these processes has grown, or 0 if it has shrunk."""
    return max(0.0, proportional_memory(*pids) - before)


@fault(
    "L1",
    "10,000 idle sessions",
    "greeted within 10 s; at most 6 KiB each; NOOP of another session takes 20 ms (p99)",
)
def idle_sessions(trial: Trial) -> None:
    """Open them from one process; compare the memory of the master and 4 workers before and after."""
    count = 10_000 if trial.full else 1000
    with Program("--workers=4", "--backlog=4096") as program, many_sockets() as sockets:
        program.wait_until_accepting(4)
        open_connections(program.address, 40, sockets)
        before = proportional_memory(*master_and_workers(program.pid))
        took = open_connections(program.address, count, sockets)
        memory_each = (proportional_memory(*master_and_workers(program.pid)) - before) / count
        with SMTPClient(program.address) as client:
            noops = noop_times(client, 500)
        trial.time("time until all are greeted", took, 10.0, 60.0)
        trial.size("memory of each", memory_each, 6, 30)
        trial.time("NOOP p99", 1000 * percentile(noops, 0.99), 20, 2000, "ms")
        trial.note(f"{count} sessions")


@fault(
    "L2",
    "2,000 idle TLS sessions",
    "at most 30 KiB each; handshake and greeting take 5 ms (median, one after another)",
    quick=False,
)
def idle_tls_sessions(trial: Trial) -> None:
    """Use implicit TLS and a P-256 key. The time includes the client's share of the handshake."""
    count = 2000 if trial.full else 100
    port = free_port()
    certificate = issue(trial.folder)
    with (
        Program("--workers=4", f"--listen=127.0.0.1:{port},tls", *certificate.options) as program,
        many_sockets() as sockets,
    ):
        program.wait_until_accepting(4)
        context, seconds = unverified_tls(), []
        for number in range(count + 40):
            if number == 40:
                before = proportional_memory(*master_and_workers(program.pid))
            began = time.perf_counter()
            connection = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 30))
            assert connection.recv(999).startswith(b"220 ")
            seconds.append(time.perf_counter() - began)
            sockets.append(connection)
        trial.size(
            "memory of each", (proportional_memory(*master_and_workers(program.pid)) - before) / count, 30, 60
        )
        trial.time("handshake and greeting, median", 1000 * percentile(seconds, 0.5), 5, 500, "ms")
        trial.note(f"{count} sessions")


def send_large_message(trial: Trial, block: bytes) -> None:
    """Send one worker a message of 10 GB that repeats a block."""
    size = 10_000_000_000 if trial.full else 200_000_000
    with Program("--workers=1", "--message_size_limit=0") as program, SMTPClient(program.address) as client:
        (worker,) = program.workers()
        client.send_message(block + b"\r\n")
        before = proportional_memory(worker)
        client.start_data()
        began = time.monotonic()
        for _ in range(size // len(block)):
            client.send(block)
        client.send(b"\r\n")
        trial.check("message accepted", client.end_data().startswith("250"))
        took = time.monotonic() - began
        trial.size("growth", growth(before, worker), 1024, 4096)
        trial.rate("speed", size / took / 1e6, 300, 10, "MB/s")
        trial.note(f"{size / 1e9:g} GB in {took:.1f} s")


@fault("L3", "a body of 10 GB", "grows by less than 1 MiB; at least 300 MB/s")
def endless_body(trial: Trial) -> None:
    """Send lines of 1000 octets over loopback; sender and worker share the machine."""
    send_large_message(trial, (b"x" * 998 + b"\r\n") * 1049)


@fault("L4", "a line of 10 GB in a body", "grows by less than 1 MiB; at least 300 MB/s")
def endless_line(trial: Trial) -> None:
    """Send the message of L3 without line endings."""
    send_large_message(trial, b"x" * MEGABYTE)


def lines_of_text(megabytes: int) -> bytes:
    """Return text in which one line of ten ends with a dot, as prose does."""
    return (9 * (b"x" * 62 + b"\r\n") + b"x" * 61 + b".\r\n") * (megabytes * MEGABYTE // 640)


@fault("L17", "a message of 10 GiB with BDAT", "grows by less than 1 MiB; takes less CPU time than DATA")
def endless_chunk(trial: Trial) -> None:
    """Send one worker a chunk of 10 GiB, then half a GiB with BDAT and with DATA in turns."""
    block = lines_of_text(1)
    blocks = 10 * 1024 if trial.full else 200
    cpu = {"BDAT": 0.0, "DATA": 0.0}
    with Program("--workers=1", "--message_size_limit=0") as program, SMTPClient(program.address) as client:
        (worker,) = program.workers()

        def send(verb: str, count: int) -> float:
            """Send a message of so many blocks; return the CPU time of the worker."""
            used = cpu_seconds(worker)
            for line in ("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.com>"):
                client.command(line)
            client.send(b"DATA\r\n" if verb == "DATA" else b"BDAT %d LAST\r\n" % (count * len(block)))
            accepted = verb == "BDAT" or client.read_reply().startswith("354")
            for _ in range(count):
                client.send(block)
            client.send(b".\r\n" if verb == "DATA" else b"")
            if not (accepted and client.read_reply().startswith("250")):
                raise UnexpectedReply(f"a message with {verb} was not accepted")
            return cpu_seconds(worker) - used

        send("BDAT", blocks // 50)
        before, began = proportional_memory(worker), time.monotonic()
        used = send("BDAT", blocks)
        took, size = time.monotonic() - began, blocks * len(block)
        trial.size("growth", growth(before, worker), 1024, 4096)
        trial.rate("speed", size / took / 1e6, 300, 10, "MB/s")
        for _ in range(5 if trial.full else 0):  # A short trial takes less than a tick of the clock.
            for verb in cpu:
                cpu[verb] += send(verb, blocks // 100)
    if trial.full:
        trial.rate("CPU time of DATA for each of BDAT", cpu["DATA"] / max(cpu["BDAT"], 0.01), 1, 0.2, "")
    trial.note(f"{size / 2**30:.1f} GiB in {took:.1f} s, {1e6 * used / size * 2**20:.0f} us of CPU for a MiB")


@fault(
    "L5", "a command of 1 MiB without an end", "500 and closed after 64 KiB, and no more than that is kept"
)
def endless_command(trial: Trial) -> None:
    """Send pieces of 1 KiB, and from 64 KiB on wait before each whether there is a reply."""
    with (
        Program("--workers=1") as program,
        SMTPClient(program.address) as client,
        SMTPClient(program.address) as warm_up,
    ):
        (worker,) = program.workers()
        warm_up.send(b"x" * 70_000)  # the first such client costs memory that later ones use again
        warm_up.read_to_end()
        before = proportional_memory(worker)
        sent = 0
        readable = select.poll()
        readable.register(client.socket, select.POLLIN)
        while sent < MEGABYTE and not readable.poll(200 if sent > 65536 else 0):
            client.send(b"x" * 1024)
            sent += 1024
        reply = client.read_to_end()
        trial.check("answered with 500 and closed", reply.startswith(b"500 5.5.2 ") and reply.endswith(b"\n"))
        trial.size("sent until the reply", sent / 1024, 66, 1024)
        trial.size("growth", growth(before, worker), 64, 1024)


@fault(
    "L6",
    "64 MiB of NOOP from a client that never reads",
    "the server stops reading, grows by less than 256 KiB, and closes after 60 s",
    quick=False,
)
def never_reads(trial: Trial) -> None:
    """Send until the server reads nothing for 1 s; write_timeout is 60 s (small trial: 2 s)."""
    write_timeout = 60 if trial.full else 2
    with (
        Program("--workers=1", f"--write_timeout={write_timeout}") as program,
        SMTPClient(program.address) as client,
    ):
        (worker,) = program.workers()
        with SMTPClient(program.address) as reader:  # the first flood costs memory that later ones use again
            for _ in range(40):
                reader.send(b"NOOP\r\n" * 4096)
                for _ in range(4096):
                    reader.read_reply()
        before = proportional_memory(worker)
        client.socket.setblocking(False)
        noops, sent = b"NOOP\r\n" * 4096, 0
        began = last = time.monotonic()
        while sent < 64 * MEGABYTE and last > time.monotonic() - 1:
            try:
                sent += client.socket.send(noops)
                last = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
        trial.size("growth", growth(before, worker), 256, 1024)
        trial.size("read before it stopped", sent / MEGABYTE, 64, 64, "MiB")
        program.wait_until_idle(write_timeout + 30)
        trial.time("time until it is closed", time.monotonic() - last, write_timeout + 2, write_timeout + 30)
        trial.note(f"{time.monotonic() - began:.0f} s in total")


@fault(
    "L7",
    "1 and 16 clients that stream without pause",
    "NOOP of another session of the same worker takes 20 and 200 ms (p99)",
)
def session_beside_streams(trial: Trial) -> None:
    """Run one worker, and the streaming clients in a process of their own."""
    for count, goal in ((1, 20.0), (16, 200.0)):
        with (
            Program("--workers=1", "--message_size_limit=0") as program,
            SMTPClient(program.address) as client,
        ):
            with endless_senders(program.address, count):
                time.sleep(0.3)
                noops = noop_times(client, 1000 if trial.full else 100, 0.002)
            trial.time(f"NOOP p99 beside {count}", 1000 * percentile(noops, 0.99), goal, 5000, "ms")


@fault(
    "L8",
    "256 descriptors, 1,000 connections",
    "less than 10 % CPU; at most one log line in 10 s; old sessions live; the rest get 421; accepts again "
    "within 1.5 s",
    quick=False,
)
def descriptors_run_out(trial: Trial) -> None:
    """Run one worker under `prlimit --nofile=256`; the connections stay for 11 s."""
    seconds = 11 if trial.full else 2
    with Program("--workers=1", command=with_descriptors(256)) as program, SMTPClient(program.address) as old:
        (worker,) = program.workers()
        with many_sockets() as sockets:
            open_connections(program.address, 1000, sockets)
            replies = [first_octets(connection) for connection in sockets]
            trial.count(
                "of 1,000, neither greeted nor refused with 421",
                sum(not reply.startswith((b"220 ", b"421 4.3.2")) for reply in replies),
            )
            before, began, alive = cpu_seconds(worker), time.monotonic(), True
            for _ in range(seconds):  # under stress, sessions that are idle for 10 s are closed
                time.sleep(1)
                alive = alive and old.command("NOOP").startswith("250")
            trial.time(
                "CPU while they are connected",
                100 * (cpu_seconds(worker) - before) / (time.monotonic() - began),
                10,
                60,
                "%",
            )
            trial.check("old session is alive", alive)
        began = time.monotonic()
        wait_for(lambda: greets(program.address), "it accepts again")
        trial.time("time until it accepts again", time.monotonic() - began, 1.5, 20)
        lines = [line for line in program.output().splitlines() if " WARNING " in line]
        trial.count("warnings in the log", len(lines), 1 + seconds // 10, test_limit=3)
        trial.note(f"{sum(reply.startswith(b'220 ') for reply in replies)} connections served")


def first_octets(connection: socket.socket) -> bytes:
    """Return what the server sends first, or nothing if it closes the connection or is silent for 10 s."""
    connection.settimeout(10)
    with suppress(OSError):
        return connection.recv(999)
    return b""


def greets(address: Address) -> bool:
    """Whether the server accepts a connection and greets it."""
    with suppress(OSError), SMTPClient(address, timeout=2) as client:
        return client.greeting.startswith("220 ")
    return False


@fault(
    "L9",
    "clients that send an octet now and then, until all connections are taken",
    "stress begins within 1 s; under stress closed at the command timeout of 10 s; 99 % of normal messages "
    "get through",
    quick=False,
)
def slow_senders(trial: Trial) -> None:
    """Fill 93 % of 5,000 connections of 4 workers (small: 400) with stress_timeout 10 s (small: 2 s).

    With --full, then send an octet every 10 s on 5,000 connections without stress, until the default timeout
    of 300 s.
    """
    count, stress_timeout = (5000, 10) if trial.full else (400, 2)
    options = f"--max_connections={count // 4}", f"--stress_timeout={stress_timeout}", "--backlog=4096"
    with Program("--workers=4", *options) as program, many_sockets() as sockets:
        program.wait_until_accepting(4)
        open_connections(program.address, int(count * 0.93), sockets)
        began = time.monotonic()
        for connection in sockets:
            with suppress(OSError):
                connection.send(b"N")
        wait_for(lambda: " WARNING " in program.output(), "a warning that connections run out")
        trial.time("time until stress", time.monotonic() - began, 1.2, 10)
        with LoadGenerator(program.address, 20, tries=3) as load:
            rounds = 0
            while time.monotonic() < began + stress_timeout + 15 and program.snapshot().open > count // 2:
                for connection in sockets[rounds % 10 :: 10]:
                    with suppress(OSError):
                        connection.send(b"O")
                rounds += 1
                time.sleep(1)
        trial.time(
            "time until they are closed", time.monotonic() - began, stress_timeout + 4, stress_timeout + 15
        )
        trial.rate(
            "normal messages delivered",
            load.percent_delivered,
            99,
            50,
            "%",
        )
        trial.note(f"{int(count * 0.93)} of {count} connections, {load.sent} messages with up to three tries")
    if trial.whole:
        slow_senders_without_stress(trial, count)


def slow_senders_without_stress(trial: Trial, count: int) -> None:
    """Add the second part of L9 to a trial."""
    with Program("--workers=4", "--backlog=4096") as program, many_sockets() as sockets:
        program.wait_until_accepting(4)
        open_connections(program.address, count, sockets)
        began = time.monotonic()
        with LoadGenerator(program.address, 20, tries=1) as load:
            while program.snapshot().open > count // 100 and time.monotonic() < began + 360:
                for connection in sockets:
                    with suppress(OSError):
                        connection.send(b"N")
                time.sleep(10)
        trial.time("time until they are closed without stress", time.monotonic() - began, 320, 360)
        trial.rate("normal messages delivered", load.percent_delivered, 99, 50, "%")
        trial.note(f"{count} clients for 300 s, {load.sent} messages with one try each")


@fault(
    "L10",
    "1,000 clients that stop after STARTTLS, or inside the ClientHello",
    "closed after 30 s; at most 30 KiB each",
    quick=False,
)
def unfinished_handshakes(trial: Trial) -> None:
    """Use the default tls_timeout (small: 2 s)."""
    count, tls_timeout = (1000, 30) if trial.full else (100, 2)
    options = f"--ssl_port={free_port()}", f"--tls_timeout={tls_timeout}", *issue(trial.folder).options
    with (
        Program("--workers=2", *options) as program,
        many_sockets() as sockets,
    ):
        program.wait_until_accepting(2)
        for _ in range(40):  # the first handshakes cost memory that later ones use again
            with SMTPClient(program.address) as client:
                client.starttls()
        open_connections(program.address, count, sockets)
        before = proportional_memory(*master_and_workers(program.pid))
        began = time.monotonic()
        hello = client_hello()
        half = len(hello) // 2
        memory_each = []
        for data in (b"STARTTLS\r\n", hello[:half], hello[half:]):
            for connection in sockets:
                connection.setblocking(True)
                connection.send(data)
            time.sleep(2 if trial.full else 0.5)
            memory_each.append(growth(before, *master_and_workers(program.pid)) / count)
        trial.size("memory of each after STARTTLS", memory_each[0], 30, 60)
        trial.size("with half a ClientHello", memory_each[1], 30, 60)
        trial.note(f"{memory_each[2]:.3g} KiB with a whole ClientHello, when TLS begins")
        seconds = []
        for _ in range(100):
            start = time.monotonic()
            deliver(program.address)
            seconds.append(time.monotonic() - start)
        trial.time("slowest message of another client", max(seconds), 1.0, 10.0)
        workers = program.workers()
        program.wait_until_idle(tls_timeout + 30)
        trial.time(
            "time until they are closed", time.monotonic() - began, tls_timeout + 2.5, tls_timeout + 30
        )
        trial.count("workers replaced", len({*program.workers()} - {*workers}))
        trial.count("tracebacks", program.output().count("Traceback"))


BEFORE_DISCONNECTING = (
    b"", b"NO", b"EHLO c.test\r\n", b"MAIL FROM:<a@b.test>\r\n", b"DATA\r\n", b"DATA\r\nSubject: x\r\n",
    b"DATA\r\nx\r\n.", b"NOOP\r\n" * 100, b"STARTTLS\r\n", b"STARTTLS\r\n\x16\x03\x01",
    b"\x16\x03\x01\x02\x00", b"QUIT\r\n",
)  # fmt: skip


def break_off(address: Address, count: int) -> None:
    """Connect, send something, and disconnect, in each of twelve states in turn.

    One client in four closes the connection and the others reset it. One in five does not wait for the
    greeting.
    """
    for batch in connection_batches(address, count):
        for number, connection in batch:
            if number % 5:
                connection.recv(999)
            connection.sendall(BEFORE_DISCONNECTING[number % len(BEFORE_DISCONNECTING)])
            if number // len(BEFORE_DISCONNECTING) % 4:
                reset_on_close(connection)


@fault(
    "L11",
    "clients that reset or disappear in every state, 10^6 connections",
    "descriptors +-2; grows by less than 5 MiB; no traceback",
)
def clients_that_break_off(trial: Trial) -> None:
    """Break off 60 connections in 12 states; then as many connections again and again (--full: 10^6, small:
    600), of which half deliver a message; then 60 more. Compare descriptors and memory after the 60."""
    half = 500_000 if trial.whole else 15_000 if trial.full else 300
    options = f"--ssl_port={free_port()}", *issue(trial.folder).options
    with Program("--workers=2", *options) as program:
        program.wait_until_accepting(2)

        def descriptors_and_memory() -> tuple[int, float]:
            program.wait_until_idle()
            pids = master_and_workers(program.pid)
            return sum(len(descriptors(pid)) for pid in pids), proportional_memory(*pids)

        break_off(program.address, 60)
        files, memory = descriptors_and_memory()
        began = time.monotonic()
        if trial.full:
            with subprocess.Popen(smtp_source(program.address, half)) as sender:
                break_off(program.address, half)
                trial.count("exit status of smtp-source", sender.wait(3600))
        else:
            break_off(program.address, half)
            for _ in range(half):
                deliver(program.address)
        took = time.monotonic() - began
        break_off(program.address, 60)
        files_after, memory_after = descriptors_and_memory()
        trial.count("change of the descriptors", abs(files_after - files), 2)
        trial.size("growth", max(0.0, memory_after - memory), 5 * 1024, 20 * 1024)
        trial.count("tracebacks", program.output().count("Traceback"))
        snapshot = program.snapshot()
        trial.count("messages miscounted", abs(snapshot.messages["accepted"] - half))
        trial.note(f"{sum(snapshot.connections.values()):,} connections in {took:.0f} s")


@fault(
    "L12",
    "one client opens 500 connections",
    "50 are served; the rest get 421 4.7.0 within 0.1 s; trusted clients are exempt",
    quick=False,
)
def one_client(trial: Trial) -> None:
    """Use --public with no trusted network, and then with the default, which is loopback."""
    with Program("--workers=4", "--public", "--trusted=none") as program, many_sockets() as sockets:
        program.wait_until_accepting(4)
        time.sleep(1.2)
        replies, seconds = [], []
        for _ in range(500):
            began = time.monotonic()
            sockets.append(socket.create_connection(program.address, 10))
            replies.append(sockets[-1].recv(999))
            seconds.append(time.monotonic() - began)
        trial.count("served", sum(reply.startswith(b"220 ") for reply in replies), 50)
        trial.count(
            "refused with 421 4.7.0",
            sum(reply.startswith(b"421 4.7.0 ") for reply in replies),
            450,
            at_least=True,
        )
        trial.time("time of a reply, p99", percentile(seconds, 0.99), 0.1, 5.0)
    with Program("--workers=4", "--public") as program, many_sockets() as sockets:
        open_connections(program.address, 500, sockets)
        trial.count(
            "refused of 500 trusted connections",
            sum(not first_octets(connection).startswith(b"220 ") for connection in sockets),
        )


@fault("L13", "10^6 host names in EHLO, 10^5 networks", "grows by less than 4 MiB")
def many_names(trial: Trial) -> None:
    """Send the names in one session; the networks are /64 networks in PROXY headers."""
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

        def send_proxy_header(number: int, connection: socket.socket) -> None:
            connection.sendall(
                f"PROXY TCP6 2001:{number >> 16:x}:{number & 0xFFFF:x}::1 2001:db8::2 9 25\r\n".encode()
            )

        def connect_from_networks(count: int) -> None:
            for batch in connection_batches(address, count):
                for number, connection in batch:
                    send_proxy_header(number, connection)
                for _, connection in batch:
                    assert connection.recv(999).startswith(b"220 ")
                    reset_on_close(connection)

        connect_from_networks(100)
        before = proportional_memory(worker)
        with socket.create_connection(address, 10) as client:
            send_proxy_header(1, client)
            assert client.recv(999).startswith(b"220 ")
            for start in range(0, names, 1000):
                client.sendall(
                    b"".join(b"EHLO host%d.test\r\n" % name for name in range(start, start + 1000))
                )
                left = 1000
                while left:
                    left -= client.recv(1 << 20).count(b"250 ")
        connect_from_networks(networks)
        trial.size("growth", growth(before, worker), 4096, 16384)
        trial.note(f"{names} names, {networks} networks")


@fault(
    "L14",
    "an exception at every await",
    "421 4.3.0 and closed; one traceback in the log; no descriptor lost; the worker lives",
    quick=False,
)
def exceptions(trial: Trial) -> None:
    """Run the tests that raise an exception at each await of a connection."""
    trial.pytest(
        "test_limits.py::test_exception_at_any_await_closes_one_connection_only",
        "test_server.py::test_internal_error_closes_one_connection_only",
    )


MAX_FILE_SIZE = 64 * MEGABYTE


@fault("L16", "the disk with the log is full", "messages are still accepted")
def full_disk(trial: Trial) -> None:
    """Log every line to a file that has the size of RLIMIT_FSIZE, so that every write to it fails."""
    log = trial.folder / "log"
    trial.folder.chmod(0o1777)
    with open(log, "w") as file:
        file.truncate(MAX_FILE_SIZE)  # a sparse file, which takes no space
    command = ("prlimit", f"--fsize={MAX_FILE_SIZE}", *SCRIPT)
    with Program("--workers=2", f"--log={log}", "--debug", command=command) as program:
        program.wait_until_accepting(2)
        failed = 0
        for _ in range(500 if trial.full else 50):
            try:
                deliver(program.address)
            except (OSError, UnexpectedReply):
                failed += 1
        trial.count("messages that failed", failed)
        trial.count("octets written to the log", log.stat().st_size - MAX_FILE_SIZE)
        trial.count("workers that died", 2 - len(program.workers()))
