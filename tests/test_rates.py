"""Live rates: `blackhole top`, and `--progress`."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.program import MODULE, Program, alive, children, environment, title, wait_for


def start_top(pid: Path) -> subprocess.Popen[str]:
    """Start `blackhole top`."""
    return subprocess.Popen(
        [*MODULE, "top", f"--pid={pid}"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_top_writes_a_line_a_second_until_interrupted(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        with start_top(pid) as top:
            assert top.stdout is not None
            assert "messages/s" in top.stdout.readline()
            assert "open" in top.stdout.readline()
            top.send_signal(signal.SIGINT)
            assert top.wait(20) == 0
        assert program.stop() == 0


def test_top_ends_when_the_server_ends(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program, start_top(pid) as top:
        assert top.stdout is not None and top.stderr is not None
        assert "messages/s" in top.stdout.readline()
        assert program.stop() == 0
        assert top.wait(20) == os.EX_UNAVAILABLE
        assert top.stderr.read() == f"blackhole: pid {program.pid} has ended\n"


def test_top_ends_quietly_when_its_reader_is_gone(tmp_path: Path) -> None:
    """As in `blackhole top | head -1`."""
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}"), start_top(pid) as top:
        assert top.stdout is not None and top.stderr is not None
        assert "messages/s" in top.stdout.readline()
        top.stdout.close()
        assert (top.wait(20), top.stderr.read()) == (0, "")


def test_progress_writes_the_rates_beside_a_foreground_server() -> None:
    with Program("--progress") as program:
        wait_for(lambda: "messages/s" in program.output(), "a line of rates")
        assert "blackhole: progress" in [title(child) for child in children(program.pid)]
        assert program.stop() == 0


def test_the_progress_process_ends_when_the_master_is_killed() -> None:
    with Program("--progress") as program:
        (telling,) = [child for child in children(program.pid) if title(child) == "blackhole: progress"]
        wait_for(lambda: "messages/s" in program.output(), "a line of rates")
        os.kill(program.pid, signal.SIGKILL)
        wait_for(lambda: not alive(telling), "the process has ended")
