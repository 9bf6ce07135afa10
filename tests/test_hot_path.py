"""What keeps Blackhole fast, counted and not timed: system calls a message, and memory a body."""

from __future__ import annotations

import re
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.engines import make_engine
from tests.external_programs import requires
from tests.postfix import smtp_source
from tests.program import Program, wait_for

MESSAGES = 400
SESSIONS = 5

CALL = re.compile(r"^(?:\[pid +\d+\] |\d+ +)?(\w+)\(")


def calls(tmp_path: Path, *how: str, inspect: str = "sample") -> Counter[str]:
    """The system calls of one worker while smtp-source sends MESSAGES in SESSIONS at once."""
    trace = tmp_path / "trace"
    with Program("--workers=1", f"--inspect={inspect}") as program:
        (worker,) = program.workers()
        # The first run of each line makes other calls, where its coverage is measured.
        warm = smtp_source(program.address, 20, *how, connections=SESSIONS)
        subprocess.run(warm, check=True, timeout=60)
        with subprocess.Popen(["strace", "-o", trace, "-p", str(worker)], stderr=subprocess.PIPE) as tracer:
            assert tracer.stderr is not None
            attached = tracer.stderr.readline()
            assert b"attached" in attached, attached
            subprocess.run(
                smtp_source(program.address, MESSAGES, *how, connections=SESSIONS), check=True, timeout=60
            )
            tracer.terminate()
    return Counter(match[1] for match in map(CALL.match, trace.read_text().splitlines()) if match)


@requires("smtp-source", "strace")
def test_message_on_an_open_connection_takes_four_reads_and_four_writes(tmp_path: Path) -> None:
    """MAIL, RCPT, DATA and the body; the connections' own calls are few."""
    found = calls(tmp_path, "-d")
    few = 4 * SESSIONS
    assert 4 * MESSAGES <= found["read"] <= 4 * MESSAGES + few
    assert 4 * MESSAGES <= found["write"] <= 4 * MESSAGES + few
    # One epoll_wait serves all that is ready; in the worst case it is one event.
    others = sum(found.values()) - found["read"] - found["write"] - found["epoll_wait"]
    assert others <= 8 * SESSIONS + 40, found


@requires("smtp-source", "strace")
@pytest.mark.parametrize(("inspect", "ioctls"), [("off", 1), ("all", 3)])
def test_connection_takes_five_system_calls_of_its_own(tmp_path: Path, inspect: str, ioctls: int) -> None:
    """accept4, ioctl, epoll_ctl, close, and the greeting's write.

    Of a session that is inspected, ioctl twice more: whether the client talked before it was greeted.
    """
    found = calls(tmp_path, inspect=inspect)
    for name in ("epoll_ctl", "close"):
        assert found[name] <= MESSAGES + 20, found
    assert found["getsockname"] <= 20, found
    assert found["ioctl"] <= ioctls * MESSAGES + 40, found
    assert found["accept4"] <= 2 * MESSAGES + 20, found
    # HELO, MAIL, RCPT, DATA, body and QUIT; one reply each and the greeting. No read for the end:
    # after QUIT both sides know.
    assert found["read"] <= 6 * MESSAGES + 20, found
    assert found["write"] <= 7 * MESSAGES + 20, found


def test_session_memory_does_not_depend_on_the_length_of_a_body() -> None:
    """What a session allocates does not depend on how long the message is."""
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy does not tell what is allocated")
    session = make_engine().session()
    session.greet()
    session.receive(b"DATA\r\n")
    chunk = (b"x" * 62 + b"\r\n") * 1024
    session.receive(chunk)
    tracemalloc.start()
    try:
        for _ in range(64):
            session.receive(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert session.octets == 65 * len(chunk)
    assert peak < 4096


def test_idle_connection_takes_less_than_4_kib() -> None:
    """Ten times the allowance of a thousand connections is far beyond what noise could do to it."""

    def resident(pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4

    with Program("--workers=1") as program:
        (worker,) = program.workers()
        clients: list[socket.socket] = []
        try:

            def connect(many: int) -> int:
                for _ in range(many):
                    clients.append(socket.create_connection(program.address, 60))
                for client in clients[-many:]:
                    assert client.recv(100).startswith(b"220 ")
                return wait_for(lambda: resident(worker), "a worker has memory")

            before = connect(100)
            after = connect(400)
        finally:
            for client in clients:
                client.close()
    assert (after - before) / 400 < 4.0, "KiB a connection"
