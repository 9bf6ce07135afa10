"""The log: a line of printable ASCII for each event, whatever clients, disks and rotation do."""

from __future__ import annotations

import logging
import re
import signal
import stat
import subprocess
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from blackhole.process import logs
from tests.program import as_root, run_python

HEAD = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} blackhole: test "


def script(body: str, path: Path | str = "", **options: object) -> subprocess.CompletedProcess[str]:
    """Set up the log in a process of its own and run some lines there."""
    return run_python(
        "from setproctitle import setproctitle\n"
        "setproctitle('blackhole: test')\n"
        "log = logging.getLogger('blackhole.test')\n"
        f"logs.set_up({str(path)!r}, **{options!r})\n" + body
    )


def log_lines(body: str) -> list[str]:
    done = script(body, debug=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def last_words(text: str) -> list[str]:
    return [line.rpartition(" ")[2] for line in text.splitlines()]


# printable


@given(st.binary())
def test_printable_text_is_ascii_and_can_be_decoded_again(data: bytes) -> None:
    shown = logs.printable(data)
    assert re.fullmatch("[ -~]*", shown)
    assert shown.encode().decode("unicode_escape").encode("latin-1") == data


def test_printable_text_keeps_ascii_and_escapes_the_rest() -> None:
    assert logs.printable(b"MAIL FROM:<ann@example.com>") == "MAIL FROM:<ann@example.com>"
    assert logs.printable(b"a\r\nb\x1b\xff\\") == r"a\r\nb\x1b\xff\\"


# Lines


def test_line_has_time_process_level_and_message() -> None:
    (line,) = log_lines("log.info('%s at %s', 'here', 'work')")
    assert re.fullmatch(HEAD + "INFO here at work", line)


def test_message_with_line_breaks_stays_one_line() -> None:
    message = r"a\r\n2026-01-01 00:00:00.000 blackhole: master INFO well \x1b[2J \u2028 \xe9 \U0001f600"
    (line,) = log_lines(f"log.info('{message}')")
    assert line.endswith(f"INFO {message}")


def test_long_message_is_cut() -> None:
    (line,) = log_lines("log.info('x' * 100000)")
    assert re.fullmatch(HEAD + f"INFO x{{{logs.MAX_MESSAGE}}}... \\(100000 characters\\)", line)


def test_traceback_is_indented_below_its_line() -> None:
    first, *trace = log_lines(
        "try:\n    raise ValueError('bad \\x1b news')\nexcept ValueError:\n    log.exception('it failed')"
    )
    assert re.fullmatch(HEAD + "ERROR it failed", first)
    assert trace[0] == "    Traceback (most recent call last):"
    assert trace[-1] == r"    ValueError: bad \x1b news"
    assert all(line.startswith("    ") for line in trace)


def test_long_traceback_is_cut_at_its_beginning() -> None:
    text = "\n".join(log_lines("try: raise ValueError('x' * 99999)\nexcept ValueError: log.exception('no')"))
    assert logs.MAX_TRACEBACK < len(text) < logs.MAX_TRACEBACK + 500


def test_debug_concerns_only_the_loggers_of_blackhole() -> None:
    body = "log.debug('own')\nlog = logging.getLogger('asyncio')\nlog.debug('foreign')\nlog.info('both')"
    assert last_words(script(body, debug=True).stderr) == ["own", "both"]
    assert last_words(script(body, debug=False).stderr) == ["both"]


# Files


def test_log_file_is_private_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for word in ("one", "two"):
        assert script(f"log.info('{word}')", path, debug=False).stderr == ""
    assert last_words(path.read_text()) == ["one", "two"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_reopened_log_is_written_to_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    move = f"os.rename({str(path)!r}, {str(path) + '.1'!r})\n"
    body = f"log.info('one')\n{move}log.info('two')\nlogs.reopen()\nlog.info('three')"
    assert script(body, path, debug=False).stderr == ""
    assert last_words((tmp_path / "log.1").read_text()) == ["one", "two"]
    assert last_words(path.read_text()) == ["three"]


def test_log_that_cannot_be_reopened_stays_in_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    move = f"os.rename({str(path)!r}, {str(path) + '.1'!r})\nos.mkdir({str(path)!r})\n"
    assert script(f"{move}logs.reopen()\nlog.info('on')", path, debug=False).returncode == 0
    error, on = (tmp_path / "log.1").read_text().splitlines()
    assert f"ERROR log file not reopened, the old one stays in use: cannot open {path}: " in error
    assert on.endswith("INFO on")


def test_full_disk_loses_lines_and_nothing_else(tmp_path: Path) -> None:
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


def test_closed_standard_error_loses_lines_and_nothing_else() -> None:
    done = script("os.close(2)\nlog.info('x')\nprint('still here')", debug=False)
    assert (done.returncode, done.stdout) == (0, "still here\n")


def test_crash_after_a_rotation_writes_its_stack_into_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    body = f"os.rename({str(path)!r}, {str(path) + '.1'!r})\nlogs.reopen()\nos.abort()"
    assert script(body, path, debug=False).returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in path.read_text()


@as_root
def test_log_file_belongs_to_the_user_of_the_workers(tmp_path: Path) -> None:
    path = tmp_path / "log"
    script("", path, debug=False, owner=(65534, 65533))
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)


# Repeated lines


def test_lines_from_one_place_are_limited_to_twenty_in_ten_seconds() -> None:
    now = 0.0
    limit = logs.RateLimitFilter(lambda: now)

    def line(number: int, level: int = logging.INFO) -> logging.LogRecord:
        return logging.LogRecord("blackhole", level, "connection.py", number, "it is %s", ("so",), None)

    assert [limit.filter(line(1)) for _ in range(50)] == [True] * 20 + [False] * 30
    assert limit.filter(line(2))
    assert all(limit.filter(line(3, logging.DEBUG)) for _ in range(50))
    now = 9.9
    assert not limit.filter(line(1))
    now = 10.0
    record = line(1)
    assert limit.filter(record)
    assert record.getMessage() == "it is so (31 more were not logged)"
    now = 30.0
    record = line(1)
    assert limit.filter(record)
    assert record.getMessage() == "it is so"
