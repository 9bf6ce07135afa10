"""The log: a line of printable ASCII for each event, whatever clients, disks and rotation do."""

from __future__ import annotations

import json
import logging
import re
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackhole import log_format
from blackhole.process import logs
from tests.program import Program, as_root, free_port, run_python

HEAD = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d blackhole: test "


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
    shown = log_format.printable(data)
    assert re.fullmatch("[ -~]*", shown)
    assert shown.encode().decode("unicode_escape").encode("latin-1") == data


def test_printable_text_keeps_ascii_and_escapes_the_rest() -> None:
    assert log_format.printable(b"MAIL FROM:<ann@example.com>") == "MAIL FROM:<ann@example.com>"
    assert log_format.printable(b"a\r\nb\x1b\xff\\") == r"a\r\nb\x1b\xff\\"


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
    assert re.fullmatch(HEAD + f"INFO x{{{log_format.MAX_MESSAGE}}}... \\(100000 characters\\)", line)


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
    assert log_format.MAX_TRACEBACK < len(text) < log_format.MAX_TRACEBACK + 500


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


# Formats


def formatted(log_format: str, body: str) -> list[str]:
    done = script(body, log_format=log_format, debug=True)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


FORGED = r"x\n2026-01-01 00:00:00.000+00:00 blackhole: w WARNING client limit: client=192.0.2.1\x1b[J\xff"
"""What a client sends in order to forge a line."""

EVENT = f"""
from blackhole.log_format import log_event
fields = {{"client": "192.0.2.9", "helo": "{FORGED}", "size": 5, "tls": None}}
log_event(log, logging.WARNING, "client limit", fields)
log.info("%s", "{FORGED}")
try:
    raise ValueError("{FORGED}")
except ValueError:
    log.exception("it failed")
"""


def test_text_shows_fields_as_logfmt() -> None:
    event, *_ = formatted("text", EVENT)
    assert re.match(HEAD + 'WARNING client limit: client=192.0.2.9 helo="x', event)
    assert event.endswith('" size=5')
    assert event.count('"') == 2


def test_json_is_an_object_on_each_line() -> None:
    event, message, error = map(json.loads, formatted("json", EVENT))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", event["time"])
    assert (event["level"], event["process"], event["message"]) == ("WARNING", "test", "client limit")
    assert (event["client"], event["size"]) == ("192.0.2.9", 5)
    assert event["helo"].startswith("x\n2026-01-01 ")
    assert "tls" not in event
    assert message["message"].startswith(r"x\n2026-01-01 ")
    assert error["traceback"].endswith("\xff")


def test_syslog_lines_are_those_of_rfc_5424() -> None:
    lines = formatted("syslog", EVENT)
    head = r"<(\d+)>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d \S+ blackhole \d+ test - "
    assert [match and match[1] for match in (re.match(head, line) for line in lines)] == ["20", "22", "19"]
    assert ' - client limit: client=192.0.2.9 helo="x' in lines[0]
    assert r"it failed Traceback (most recent call last):\n" in lines[2]


@pytest.mark.parametrize("log_format", ["text", "json", "syslog"])
def test_no_client_can_forge_a_line_or_a_control_character(log_format: str) -> None:
    lines = formatted(log_format, EVENT)
    assert all(re.fullmatch("[ -~]+", line) for line in lines)
    if log_format == "text":
        lines = [line for line in lines if not line.startswith("    ")]
    assert len(lines) == 3


def test_long_fields_are_cut_each_on_its_own() -> None:
    body = EVENT.replace(FORGED, "y" * 5000)
    for line in formatted("text", body)[:1] + formatted("json", body)[:1]:
        assert len(line) < 1000
        assert "... (5000 characters)" in line
        assert "size" in line


def test_trace_has_its_fields_in_json() -> None:
    body = """
from blackhole.process.worker import trace
class Session:
    client, connection_id, traced_id = "192.0.2.9", 0x3B21D0F6A4, 0x9E0C55A17B
trace(Session(), "RECV", b"MAIL FROM:<ann@example.com>\\x00")
"""
    (line,) = formatted("json", body)
    found = json.loads(line)
    assert {name: found[name] for name in ("message", "client", "connection", "transaction", "line")} == {
        "message": "RECV",
        "client": "192.0.2.9",
        "connection": "3B21D0F6A4",
        "transaction": "9E0C55A17B",
        "line": r"MAIL FROM:<ann@example.com>\x00",
    }
    (line,) = formatted("text", body)
    shown = (
        r"192.0.2.9 connection [3B21D0F6A4] transaction [9E0C55A17B] RECV: MAIL FROM:<ann@example.com>\x00"
    )
    assert line.endswith(f"DEBUG {shown}")


def test_dropped_lines_are_a_field_of_an_event() -> None:
    body = """
import blackhole.process.logs as logs
from blackhole.log_format import log_event
now = 0.0
logs.logging.getLogger().handlers[0].addFilter(logs.RateLimitFilter(lambda: now))
def tell(limited=True): log_event(log, logging.WARNING, "client limit", {"client": "192.0.2.9"}, limited)
for _ in range(30): tell()
now = 11.0
tell()
for _ in range(30): tell(limited=False)
"""
    lines = formatted("json", body)
    assert len(lines) == 20 + 1 + 30
    assert [json.loads(line).get("not_logged") for line in lines][19:22] == [None, 10, None]


def test_warnings_of_the_start_reach_the_log_file(tmp_path: Path) -> None:
    log, conf = tmp_path / "log", tmp_path / "conf"
    conf.write_text(f"host = 127.0.0.1\nport = {free_port()}\nworkers = 1\nssl_ca_certs_dir = /etc\n")
    with Program(f"--conf={conf}", f"--log={log}", "--log-format=json") as program:
        lines = map(json.loads, log.read_text().splitlines())
        (warning,) = (line["message"] for line in lines if line["level"] == "WARNING")
        assert warning.startswith(f"{conf}:4: ssl_ca_certs_dir: ignored, because")
        assert f"blackhole: {warning}\n" in program.output()
