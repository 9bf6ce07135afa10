"""Counters by name: none is lost, and machines of other versions may have others."""

from __future__ import annotations

import pytest

from blackhole.fleet.fields import FIXED_FIELDS, fields, snapshot
from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import (
    CELL_INDEX,
    CELLS,
    HISTOGRAM_INDEX,
    LISTENERS_START,
    MAX_LISTENERS,
    MAX_RULE_NAMES,
    OTHERS,
    RULE_HITS_START,
    TITLE_CELLS,
    TITLE_START,
)

pytestmark = pytest.mark.pure


def test_each_counter_has_a_field_of_its_own() -> None:
    gauges = {CELL_INDEX[cell.name] for cell in CELLS if cell.gauge}
    title = range(TITLE_START, TITLE_START + TITLE_CELLS)
    named = {
        *range(LISTENERS_START, LISTENERS_START + MAX_LISTENERS),
        *range(RULE_HITS_START, RULE_HITS_START + MAX_RULE_NAMES),
    }
    assert sorted({*FIXED_FIELDS.values(), *gauges, *title, *named}) == [*range(HISTOGRAM_INDEX[""])]
    assert len(set(FIXED_FIELDS.values())) == len(FIXED_FIELDS)


def test_counters_come_back_as_they_were() -> None:
    counters = Counters(rows=1)
    cells = counters.cells(counters.allocate_row())
    cells[counters.listener("127.0.0.1:25")] = 3
    cells[counters.rule_counters(["full"])[0]] = 2
    for number, cell in enumerate(FIXED_FIELDS.values(), 1):
        cells[cell] = number
    before = counters.snapshot()
    after = snapshot(fields(before), before.seconds, before.started, (), 0)
    assert after.as_dict() | {"seconds": 0} == before.as_dict() | {"seconds": 0}


def test_a_field_of_another_version_is_left_out() -> None:
    found = snapshot({"violation of-the-future": 5, "reply . 250": 2}, 0, 0, (), 0)
    assert found.messages["accepted"] == 2
    assert sum(found.cells) == 2


def test_names_that_are_too_many_are_added_up() -> None:
    found = {f"listener 192.0.2.1:{number}": number for number in range(1, 101)} | {"listener others": 7}
    connections = snapshot(found, 0, 0, (), 0).connections
    assert len(connections) == MAX_LISTENERS
    assert sum(connections.values()) == sum(found.values())
    assert connections["192.0.2.1:100"] == 100
    assert connections[OTHERS] == 7 + sum(range(1, 38))
