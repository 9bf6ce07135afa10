"""contrib/prometheus and contrib/grafana: checked by promtool, and asked of a real Prometheus."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.external_programs import output_of, path_of, requires
from tests.http_api import Sink, ask, send
from tests.program import ROOT, free_port, scenario_option, wait_for

FOLDER = ROOT / "contrib/prometheus"
DASHBOARD = json.loads((ROOT / "contrib/grafana/dashboard.json").read_text())
QUERIES = {panel["title"]: panel["targets"][0]["expr"] for panel in DASHBOARD["panels"]}


@requires("promtool")
def test_alert_rules_are_valid_and_alert_as_their_own_test_says() -> None:
    assert "SUCCESS" in output_of(path_of("promtool"), "check", "rules", str(FOLDER / "alerts.yml"))
    assert "SUCCESS" in output_of(path_of("promtool"), "test", "rules", str(FOLDER / "alerts_test.yml"))


def test_panels_of_grafana_do_not_overlap() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len({*places}) == len(places) == len(QUERIES)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


@requires("prometheus")
@pytest.mark.timeout(180)
def test_every_query_of_grafana_returns_data_of_a_running_sink(tmp_path: Path) -> None:
    rules = '[[rule]]\nname = "full"\nphase = "RCPT"\nrecipient = "full@*"\nreply = "452 4.2.2 Full"\n'
    port = free_port()
    with Sink(scenario_option(tmp_path, rules)) as sink:
        sink.dashboard()
        (tmp_path / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n- job_name: blackhole\n"
            f"  static_configs: [{{targets: ['127.0.0.1:{sink.http}']}}]\n"
        )
        command = [
            path_of("prometheus"),
            *(f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"),
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                wait_for(lambda: is_ready(port), "Prometheus is ready", 60)

                def without_data() -> list[str]:
                    send(sink.port, 3)
                    return [title for title, query in QUERIES.items() if not has_data(port, query)]

                wait_for(lambda: not without_data(), f"data for all of {', '.join(QUERIES)}", 60)
            finally:
                process.kill()


def is_ready(port: int) -> bool:
    try:
        return ask(port, "/-/ready").status == 200
    except OSError:
        return False


def has_data(port: int, query: str) -> bool:
    """Return whether Prometheus has a number for a query of a panel."""
    query = query.replace("$__rate_interval", "30s").replace("$instance", ".*")
    found = ask(port, f"/api/v1/query?query={quote(query)}").json
    assert found["status"] == "success", found
    return any(one["value"][1] != "NaN" for one in found["data"]["result"])
