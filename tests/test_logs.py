"""The log: one event one line of printable ASCII, whatever clients, disks and rotation do."""

from __future__ import annotations

import logging
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from program import environment

from blackhole.process import logs
from blackhole.process.safe_open import open_regular
from blackhole.settings import OperatorError

HEAD = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} blackhole: test "


def script(body: str, path: Path | str = "", **options: object) -> subprocess.CompletedProcess[str]:
    """Run some lines in a process of its own, for there is one log a process: what it wrote to stderr."""
    code = (
        "import logging, os, resource, signal, sys\n"
        "from setproctitle import setproctitle\n"
        "from blackhole.process import logs\n"
        "setproctitle('blackhole: test')\n"
        "log = logging.getLogger('blackhole.test')\n"
        f"logs.set_up({str(path)!r}, **{options!r})\n"
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code + body],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def lines(body: str) -> list[str]:
    done = script(body, debug=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def shutdown_write(text: str) -> list[str]:
    return [line.rpartition(" ")[2] for line in text.splitlines()]


# printable


@given(st.binary())
def test_printable_is_ascii_and_can_be_read_back(data: bytes) -> None:
    shown = logs.printable(data)
    assert re.fullmatch("[ -~]*", shown)
    assert shown.encode().decode("unicode_escape").encode("latin-1") == data


def test_printable_leaves_alone_what_can_be_read() -> None:
    assert logs.printable(b"MAIL FROM:<ann@example.com>") == "MAIL FROM:<ann@example.com>"
    assert logs.printable(b"a\r\nb\x1b\xff\\") == r"a\r\nb\x1b\xff\\"


# Lines


def test_a_line_says_when_who_how_bad_and_what() -> None:
    (line,) = lines("log.info('%s at %s', 'here', 'work')")
    assert re.fullmatch(HEAD + "INFO here at work", line)


def test_no_message_can_forge_a_line() -> None:
    message = r"a\r\n2026-01-01 00:00:00.000 blackhole: master INFO well \x1b[2J \u2028 \xe9 \U0001f600"
    (line,) = lines(f"log.info('{message}')")
    assert line.endswith(f"INFO {message}")


def test_a_long_message_is_cut() -> None:
    (line,) = lines("log.info('x' * 100000)")
    assert re.fullmatch(HEAD + f"INFO x{{{logs.LINE}}}... \\(100000 in all\\)", line)


def test_a_traceback_is_indented_below_its_line() -> None:
    first, *trace = lines(
        "try:\n    raise ValueError('bad \\x1b news')\nexcept ValueError:\n    log.exception('it failed')"
    )
    assert re.fullmatch(HEAD + "ERROR it failed", first)
    assert trace[0] == "    Traceback (most recent call last):"
    assert trace[-1] == r"    ValueError: bad \x1b news"
    assert all(line.startswith("    ") for line in trace)


def test_a_traceback_without_end_is_cut_at_its_beginning() -> None:
    text = "\n".join(lines("try: raise ValueError('x' * 99999)\nexcept ValueError: log.exception('no')"))
    assert logs.TRACE < len(text) < logs.TRACE + 500


def test_debug_is_for_our_own_loggers() -> None:
    body = "log.debug('ours')\nlog = logging.getLogger('asyncio')\nlog.debug('theirs')\nlog.info('both')"
    assert shutdown_write(script(body, debug=True).stderr) == ["ours", "both"]
    assert shutdown_write(script(body, debug=False).stderr) == ["both"]


# Files


def test_a_file_is_private_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for word in ("one", "two"):
        assert script(f"log.info('{word}')", path, debug=False).stderr == ""
    assert shutdown_write(path.read_text()) == ["one", "two"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_after_rotation_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    move = f"os.rename({str(path)!r}, {str(path) + '.1'!r})\n"
    body = f"log.info('one')\n{move}log.info('two')\nlogs.reopen()\nlog.info('three')"
    assert script(body, path, debug=False).stderr == ""
    assert shutdown_write((tmp_path / "log.1").read_text()) == ["one", "two"]
    assert shutdown_write(path.read_text()) == ["three"]


def test_when_it_cannot_be_opened_again_the_old_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    move = f"os.rename({str(path)!r}, {str(path) + '.1'!r})\nos.mkdir({str(path)!r})\n"
    assert script(f"{move}logs.reopen()\nlog.info('on')", path, debug=False).returncode == 0
    error, on = (tmp_path / "log.1").read_text().splitlines()
    assert f"ERROR the log is not opened again: {path}" in error
    assert on.endswith("INFO on")


def test_a_full_disk_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "log"
    body = (
        "before = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))\n"
        "for _ in range(100): log.info('x' * 90)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, before)\n"
        "print('still here')"
    )
    done = script(body, path, debug=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "still here\n", "")
    assert path.stat().st_size == 300


def test_a_closed_standard_error_loses_lines_and_nothing_else() -> None:
    done = script("os.close(2)\nlog.info('x')\nprint('still here')", debug=False)
    assert (done.returncode, done.stdout) == (0, "still here\n")


def test_a_crash_writes_its_stack_into_the_rotated_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    body = f"os.rename({str(path)!r}, {str(path) + '.1'!r})\nlogs.reopen()\nos.abort()"
    assert script(body, path, debug=False).returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in path.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_workers_can_open_it_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    script("", path, debug=False, owner=(65534, 65533))
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)


# What stands in the way of a file


OBSTACLES: dict[str, Callable[[Path, Path], object]] = {
    "a symbolic link": lambda path, other: path.symlink_to(other),
    "a hard link": lambda path, other: path.hardlink_to(other),
    "a pipe": lambda path, other: os.mkfifo(path),
    "a directory": lambda path, other: path.mkdir(),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_nothing_but_a_regular_file_is_opened(tmp_path: Path, obstacle: str) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_text("precious")
    OBSTACLES[obstacle](path, other)
    with pytest.raises(OperatorError, match=re.escape(str(path))) as caught:
        open_regular(str(path), os.O_RDWR | os.O_CREAT, 0o600)
    assert caught.value.code == os.EX_CANTCREAT
    assert other.read_text() == "precious"


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "log"
    with pytest.raises(OperatorError, match=f"{path} cannot be opened: No such file or directory"):
        open_regular(str(path), os.O_WRONLY | os.O_CREAT, 0o600)


def test_what_repeats_itself_is_damped() -> None:
    """Of one place in the program twenty lines in ten seconds, then how many were left out."""
    now = 0.0
    damper = logs.RateLimitFilter(lambda: now)

    def line(number: int, level: int = logging.INFO) -> logging.LogRecord:
        return logging.LogRecord("blackhole", level, "connection.py", number, "it is %s", ("so",), None)

    assert [damper.filter(line(1)) for _ in range(50)] == [True] * 20 + [False] * 30
    assert damper.filter(line(2))
    assert all(damper.filter(line(3, logging.DEBUG)) for _ in range(50))
    now = 9.9
    assert not damper.filter(line(1))
    now = 10.0
    record = line(1)
    assert damper.filter(record)
    assert record.getMessage() == "it is so (31 more were not logged)"
    now = 30.0
    record = line(1)
    assert damper.filter(record)
    assert record.getMessage() == "it is so"
