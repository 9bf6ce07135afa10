"""The log as datagrams for a syslog daemon on the same machine, here a socket of the test's own."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from blackhole.process.syslog_socket import SyslogHandler, is_socket
from blackhole.settings import OperatorError
from tests.program import Program, run, wait_for
from tests.smtp_client import deliver

HEAD = r"<(\d+)>[A-Z][a-z]{2} [ 1-3]\d \d\d:\d\d:\d\d blackhole\[\d+\]: "


@pytest.fixture
def path() -> Iterator[Path]:
    """The address of the daemon: short, as addresses of sockets have to be (unix(7))."""
    with TemporaryDirectory() as folder:
        yield Path(folder, "log")


@contextmanager
def daemon(path: Path) -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(20)
        try:
            yield receiver
        finally:
            path.unlink()


@contextmanager
def handler_of(path: Path, log_format: str = "text") -> Iterator[SyslogHandler]:
    handler = SyslogHandler(str(path), lambda: NOW[0])
    handler.use_format(log_format)
    try:
        yield handler
    finally:
        os.close(handler.descriptor)
        handler.close()


NOW = [0.0]
"""The time of handlers."""


def line(text: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("blackhole", level, "x.py", 1, text, (), None)


@pytest.mark.parametrize("log_format", ["text", "syslog"])
def test_line_has_the_form_of_syslog_3(path: Path, log_format: str) -> None:
    with daemon(path) as receiver, handler_of(path, log_format) as handler:
        for level, number in ((logging.INFO, "22"), (logging.WARNING, "20"), (logging.DEBUG, "23")):
            handler.emit(line("one\r\ntwo\x1b", level))
            match = re.fullmatch(HEAD + r".*: one\\r\\ntwo\\x1b", receiver.recv(4096).decode())
            assert match is not None
            assert match[1] == number


def test_traceback_stays_in_its_datagram(path: Path) -> None:
    with daemon(path) as receiver, handler_of(path) as handler:
        record = line("it failed", logging.ERROR)
        error = ValueError("no\n")
        record.exc_info = ValueError, error, None
        handler.emit(record)
        assert receiver.recv(4096).decode().endswith(r": it failed ValueError: no\n")


def test_object_of_json_is_behind_the_same_head(path: Path) -> None:
    with daemon(path) as receiver, handler_of(path, "json") as handler:
        handler.emit(line("hello"))
        text = receiver.recv(4096).decode()
        match = re.match(HEAD, text)
        assert match is not None
        assert json.loads(text[match.end() :])["message"] == "hello"


def test_lines_that_the_daemon_does_not_take_are_dropped_and_counted(path: Path) -> None:
    with daemon(path) as receiver, handler_of(path) as handler:
        sent = 0
        while not handler.dropped:  # the queue of the socket ends before long
            handler.emit(line(f"number {sent}"))
            sent += 1
        handler.emit(line("lost"))
        for number in range(sent - 1):
            assert receiver.recv(4096).decode().endswith(f"number {number}")
        handler.emit(line("after"))
        assert receiver.recv(4096).decode().endswith(": after (2 lines before were not logged)")
        handler.emit(line("after that"))
        assert receiver.recv(4096).decode().endswith(": after that")


def test_daemon_that_is_restarted_is_found_again(path: Path) -> None:
    NOW[0] = 0.0
    with daemon(path):
        handling = handler_of(path)
        handler = handling.__enter__()
    try:
        NOW[0] = 0.9
        handler.emit(line("lost"))
        NOW[0] = 1.0
        handler.emit(line("lost"))  # there is no daemon yet
        with daemon(path) as receiver:
            NOW[0] = 1.9
            handler.emit(line("lost"))  # not looked for once more
            NOW[0] = 2.0
            handler.emit(line("lost"))
            handler.emit(line("found"))
            assert receiver.recv(4096).decode().endswith(": found (4 lines before were not logged)")
    finally:
        handling.__exit__(None, None, None)


def test_socket_that_takes_no_datagrams_is_an_error_of_the_operator(path: Path) -> None:
    assert not is_socket(str(path))
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(path))
        listening.listen()
        assert is_socket(str(path))
        with pytest.raises(OperatorError, match=r"cannot log to the socket .*; is a syslog daemon running\?"):
            SyslogHandler(str(path))
        done = run("--host=127.0.0.1", "--port=0", f"--log={path}")
        assert done.returncode == os.EX_CANTCREAT
        assert f"cannot log to the socket {path}: " in done.stderr


def lines(receiver: socket.socket) -> list[str]:
    """Return the lines that are there: the queue of a socket has room for a few only."""
    found = []
    receiver.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            found.append(receiver.recv(4096).decode())
    return found


def test_program_logs_to_the_daemon_and_to_its_successor(path: Path) -> None:
    with daemon(path) as receiver, Program("--log-transactions", f"--log={path}") as program:

        def has_logged(receiver: socket.socket) -> bool:
            transaction = HEAD + r"worker \d: transaction: client=127\.0\.0\.1 "
            deliver(program.address)
            return any(re.match(transaction, line) for line in lines(receiver))

        wait_for(lambda: has_logged(receiver), "a transaction is logged")
        path.rename(path.with_name("old"))
        with daemon(path) as successor:
            program.process.send_signal(signal.SIGUSR1)
            wait_for(lambda: has_logged(successor), "a transaction is logged to the successor")
        path.with_name("old").rename(path)
