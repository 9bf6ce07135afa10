"""The shared counters: rows and their owners, names of listeners, readers in other processes."""

from __future__ import annotations

import json
import os

import pytest

from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import CELL_INDEX, LISTENERS_START, MAX_LISTENERS, EventCells
from blackhole.rules.outcomes import EVENTS
from blackhole.settings import OperatorError
from blackhole.smtp.state import PHASES
from blackhole.smtp.violations import VIOLATIONS
from tests.program import Program, wait_for

NUMBERS = EventCells()


def test_every_event_of_a_session_has_a_cell_of_its_own() -> None:
    numbers = [
        *(NUMBERS.reply(phase, code) for phase in PHASES for code in range(200, 600)),
        *(NUMBERS.violation(violation.name) for violation in VIOLATIONS),
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
    assert counters.last_heartbeat(row) > 0
    counters.cells(row)[NUMBERS.reply(".", 250)] += 7
    counters.cells(row)[CELL_INDEX["open"]] = 7
    counters.free_row(row)
    assert counters.allocate_row() == row
    seen = counters.snapshot()
    assert (seen.messages["accepted"], seen.open, seen.processes) == (7, 0, ())
    assert counters.last_heartbeat(row) == 0
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
