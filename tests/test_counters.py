"""The shared counters: rows and their owners, names of listeners, readers in other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import dedent

import pytest

from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import (
    CELL_INDEX,
    HEADER_USED_ROWS,
    LISTENERS_START,
    MAX_LISTENERS,
    OUTCOMES_START,
    VIOLATING_CONNECTIONS_START,
    EventCells,
)
from blackhole.rules.outcomes import EVENTS
from blackhole.settings import OperatorError
from blackhole.smtp.state import PHASES
from blackhole.smtp.violations import SAMPLED, VIOLATIONS
from blackhole.store.shared_memory import SEALS
from tests.program import Program, environment, wait_for

NUMBERS = EventCells()


def test_every_event_of_a_session_has_a_cell_of_its_own() -> None:
    numbers = [
        *(NUMBERS.reply(phase, code) for phase in PHASES for code in range(200, 600)),
        *(NUMBERS.violation(violation.name) for violation in VIOLATIONS),
        *(NUMBERS.sampled_violation(name) for name in SAMPLED),
        *range(VIOLATING_CONNECTIONS_START, OUTCOMES_START),
        *(NUMBERS.outcome(event.name) for event in EVENTS),
    ]
    assert numbers == list(range(LISTENERS_START))


def test_the_number_of_a_reply_grows_with_its_code() -> None:
    """So that a session can add the code to the number of the phase."""
    for phase in PHASES:
        assert NUMBERS.reply(phase, 0) + 250 == NUMBERS.reply(phase, 250)


def test_a_freed_row_keeps_its_counters_and_loses_its_gauges() -> None:
    counters = Counters(1)
    row = counters.allocate_row()
    counters.set_owner(row, "blackhole: worker 1")
    counters.heartbeat(row)
    assert counters.live_rows() == [row]
    counters.cells(row)[NUMBERS.reply(".", 250)] += 7
    counters.cells(row)[CELL_INDEX["open"]] = 7
    counters.free_row(row)
    assert counters.allocate_row() == row
    seen = counters.snapshot()
    assert (seen.messages["accepted"], seen.open, seen.processes) == (7, 0, ())
    assert counters.live_rows() == []
    with pytest.raises(RuntimeError):
        counters.allocate_row()


def test_a_listener_keeps_its_cell() -> None:
    counters = Counters(1)
    assert counters.listener("127.0.0.1:25") == LISTENERS_START
    assert counters.listener("[::1]:25") == LISTENERS_START + 1
    assert counters.listener("127.0.0.1:25") == LISTENERS_START
    counters.cells(counters.allocate_row())[LISTENERS_START + 1] = 4
    assert dict(counters.snapshot().connections) == {"127.0.0.1:25": 0, "[::1]:25": 4}


def test_listeners_beyond_the_table_share_the_last_cell() -> None:
    counters = Counters(1)
    cells = {counters.listener(f"127.0.0.1:{port}") for port in range(1, 100)}
    assert len(cells) == MAX_LISTENERS
    assert counters.snapshot().listeners[-1] == "others"


def test_another_process_can_read_the_counters_of_a_running_server() -> None:
    with Program() as program:
        seen = wait_for(lambda: Counters.of(program.pid).snapshot(), "the counters")
        assert [worker.title for worker in seen.processes][:2] == [
            "blackhole: worker 1",
            "blackhole: worker 2",
        ]
        assert list(seen.connections) == [f"127.0.0.1:{program.port}"]
        assert (
            sorted(worker.pid for worker in seen.processes if "worker" in worker.title) == program.workers()
        )
        json.dumps(seen.as_dict())


def test_a_process_without_counters_is_reported() -> None:
    with pytest.raises(OperatorError, match="has no counters"):
        Counters.of(os.getppid())
    with pytest.raises(OperatorError, match="has just ended"):
        Counters.of(2**22 + 1)


def test_counters_of_another_layout_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Counters(1)
    monkeypatch.setattr("blackhole.metrics.counters.LAYOUT_CRC", counters._cells[0] + 1)
    with pytest.raises(OperatorError, match="another version"):
        Counters.of(os.getpid())


def test_what_a_worker_writes_into_the_header_does_not_change_the_rows_of_the_master() -> None:
    counters = Counters(2)
    counters.allocate_row()
    for cell in range(4):
        counters._cells[cell] = 0
    assert counters.rows == 2
    assert counters.allocate_row() == 1
    counters._cells[HEADER_USED_ROWS] = 2**64 - 1
    counters.snapshot()


@contextmanager
def process_with_map(code: str) -> Iterator[int]:
    """Run a process that executes `code`, and return its pid."""
    code = f"from blackhole.metrics.counters import *\n{dedent(code)}\nprint(flush=True)\ninput()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("octets", [0, 3, 8, 4096, 65536])
@pytest.mark.parametrize("seals", [0, SEALS])
def test_map_that_another_program_made_is_no_map_of_counters(octets: int, seals: int) -> None:
    code = f"""
        import fcntl
        file = os.memfd_create(COUNTERS_MAP, os.MFD_ALLOW_SEALING)
        os.write(file, b"\\xff" * {octets})
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, {seals})
    """
    with (
        process_with_map(code) as pid,
        pytest.raises(OperatorError, match=r"has no counters|another version"),
    ):
        Counters.of(pid)


def test_map_with_a_wrong_number_of_rows_can_be_read() -> None:
    code = """
        counters = Counters(2)
        counters._cells[HEADER_ROWS] = counters._cells[HEADER_USED_ROWS] = 2**40
    """
    with process_with_map(code) as pid:
        assert Counters.of(pid).snapshot().processes == ()
