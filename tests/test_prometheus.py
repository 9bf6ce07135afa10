"""The exposition for Prometheus: its own tools accept it, and it agrees with the table of metrics."""

from __future__ import annotations

import subprocess

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import CELL_INDEX, EventCells
from blackhole.metrics.snapshot import Snapshot
from blackhole.rules.outcomes import EVENTS
from blackhole.store.domain_log import DomainLog
from blackhole.web import prometheus
from tests.external_programs import requires

NUMBERS = EventCells()


@pytest.fixture
def snapshot() -> Snapshot:
    """Every outcome counted once, the first twice, and so on; a listener, a rule and a reply."""
    counters = Counters(rows=1)
    cells = counters.cells(counters.allocate_row())
    cells[counters.listener("127.0.0.1:2525")] = 3
    (rule,) = counters.rule_counters(["busy"], {"busy": "10 connections at once"})
    cells[rule] = 4
    cells[NUMBERS.reply("RCPT", 451)] = 5
    cells[CELL_INDEX["closed_without_command"]] = 6
    counters.domain_log = DomainLog(1)
    for outcome, now in (("deferred", 1.0), ("accepted", 9.0)):
        counters.domain_log.writer(0).update(b"ann@a.test", b"bob@b.test", outcome, now)
    for number, event in enumerate(EVENTS):
        cells[NUMBERS.outcome(event.name)] = number + 1
    return counters.snapshot()


def exposition(snapshot: Snapshot, accept: str = "") -> str:
    return prometheus.text(snapshot, {"1": 1.5}, accept, {"one.test": 12.5})[1].decode()


def samples(snapshot: Snapshot) -> dict[str, float]:
    """Return the value of each sample by its name and labels, as the text format writes them."""
    lines = [line for line in exposition(snapshot).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_every_metric_of_the_table_is_exposed_with_its_type_help_and_labels(snapshot: Snapshot) -> None:
    exposed = [
        (
            family.name + ("_total" if family.type == "counter" else ""),
            family.type,
            family.documentation,
            {*family.samples[0].labels} - {"le"},
        )
        for family in text_string_to_metric_families(exposition(snapshot))
    ]
    assert exposed == [(row.full_name, row.kind, row.help, {*row.labels}) for row in prometheus.METRICS]


def test_the_openmetrics_format_satisfies_its_strict_parser(snapshot: Snapshot) -> None:
    text = exposition(snapshot, "application/openmetrics-text; version=1.0.0")
    families = list(openmetrics.text_string_to_metric_families(text))
    assert [family.name for family in families] == [f"blackhole_{row.name}" for row in prometheus.METRICS]


def test_each_outcome_of_retries_has_a_counter_of_its_own(snapshot: Snapshot) -> None:
    seen, outcomes = samples(snapshot), snapshot.outcomes
    assert seen["blackhole_deferred_recipients_total"] == outcomes["deferred"]
    assert seen["blackhole_refused_recipients_total"] == outcomes["refused"]
    assert seen["blackhole_recipients_deferred_again_total"] == outcomes["deferred_again"]
    assert seen["blackhole_recipients_accepted_on_retry_total"] == outcomes["accepted_on_retry"]
    for after in ("4xx", "5xx"):
        name = f'blackhole_retried_recipients_total{{after="{after}"}}'
        assert seen[name] == outcomes[f"retried_after_{after}"]
    for outcome in ("closed_before_reply", "closed_within_reply", "closed_after_reply", "reply_too_late"):
        assert seen[f'blackhole_uncertain_outcomes_total{{outcome="{outcome}"}}'] == outcomes[outcome]
        name = f'blackhole_retried_uncertain_outcomes_total{{outcome="{outcome}"}}'
        assert seen[name] == outcomes[f"{outcome}_retried"]


def test_retry_intervals_are_cumulative_buckets(snapshot: Snapshot) -> None:
    seen, counts = samples(snapshot), snapshot.retry_intervals
    assert seen['blackhole_retry_interval_seconds_bucket{le="1.0"}'] == counts[0]
    assert seen['blackhole_retry_interval_seconds_bucket{le="60.0"}'] == sum(counts[:3])
    assert seen['blackhole_retry_interval_seconds_bucket{le="+Inf"}'] == sum(counts)


def test_connections_closed_without_a_command_are_exposed(snapshot: Snapshot) -> None:
    assert samples(snapshot)["blackhole_connections_closed_without_command_total"] == 6


@requires("promtool")
def test_promtool_finds_nothing_to_complain_about(snapshot: Snapshot) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition(snapshot), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
