"""Counters by name: none is lost, and machines of other versions may have others."""

from __future__ import annotations

import pytest

from blackhole.fleet.fields import FIXED_FIELDS, fields, snapshot
from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import (
    CELL_INDEX,
    CELLS,
    HISTOGRAM_INDEX,
    LIMITS_START,
    LISTENERS_START,
    MAX_LISTENERS,
    MAX_RULE_NAMES,
    OTHERS,
    RULE_HITS_START,
    TITLE_CELLS,
    TITLE_START,
    limit_counters,
)

pytestmark = pytest.mark.pure


def test_each_counter_has_a_field_of_its_own() -> None:
    gauges = {CELL_INDEX[cell.name] for cell in CELLS if cell.gauge}
    title = range(TITLE_START, TITLE_START + TITLE_CELLS)
    named = {
        *range(LISTENERS_START, LISTENERS_START + MAX_LISTENERS),
        *range(RULE_HITS_START, LIMITS_START),
    }
    assert sorted({*FIXED_FIELDS.values(), *gauges, *title, *named}) == [*range(HISTOGRAM_INDEX[""])]
    assert len(set(FIXED_FIELDS.values())) == len(FIXED_FIELDS)


def test_counters_come_back_as_they_were() -> None:
    counters = Counters(rows=1)
    cells = counters.cells(counters.allocate_row())
    cells[counters.listener("127.0.0.1:25")] = 3
    full, busy, _ = counters.rule_counters(["full", "busy", "unused"])
    cells[full] = 2
    for number, cell in enumerate(limit_counters(busy), 5):
        cells[cell] = number
    for number, cell in enumerate(FIXED_FIELDS.values(), 1):
        cells[cell] = number
    before = counters.snapshot()
    after = snapshot(fields(before), before.seconds, before.started, (), 0)
    assert before.as_dict()["rule_limits"] == {"busy": {"limit": "", "passed": 5, "limited": 6}}
    assert before.rule_hits == {"full": 2, "busy": 0, "unused": 0}
    same = {"seconds": 0, "rule_hits": {"full": 2, "busy": 0}}  # of a rule without figures nothing is known
    assert after.as_dict() | same == before.as_dict() | same
    assert after.rule_hits == same["rule_hits"]


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


def test_limits_of_rules_that_are_too_many_are_added_up() -> None:
    """A rule is shown by all that it decided: one that let much pass comes before one that matched little."""
    found = {f"rule rule-{number}": number for number in range(1, MAX_RULE_NAMES + 10)}
    found |= {"passed busy": 1000, "limited busy": 3, "passed rule-1": 4, "limited others": 2}
    made = snapshot(found, 0, 0, (), 0)
    assert len(made.rule_counters) == MAX_RULE_NAMES
    assert made.rule_limits == {"busy": ("", 1000, 3), OTHERS: ("", 4, 2)}
    assert sum(made.rule_hits.values()) == sum(range(1, MAX_RULE_NAMES + 10))
