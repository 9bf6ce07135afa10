"""The HTTP API of the dashboard: statistics, metrics, runs, waiting, reports and events."""

from __future__ import annotations

import json
import os
import re
import signal
import smtplib
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from blackhole.hostname import own_hostname
from blackhole.web.events import MAX_VIEWERS
from tests.external_programs import requires
from tests.http_api import Sink, ask, figures, post, send, sent, total
from tests.program import children, free_port, wait_for

# Figures


def test_stats_are_exact_over_several_senders() -> None:
    with Sink() as program:
        program.dashboard()
        with ThreadPoolExecutor(4) as senders:
            list(senders.map(lambda _: send(program.port, 25), range(4)))
        now = figures(program.http)
        assert now["messages"] == {"accepted": 100, "deferred": 0, "rejected": 0}
        assert now["recipients"] == 200
        wait_for(
            lambda: figures(program.http)["histograms"]["message_bytes"]["count"] == 100,
            "sizes are counted once a second",
        )
        assert now["connections"]["total"] == 4
        assert now["connections"]["by_listener"] == {f"127.0.0.1:{program.port}": 4}
        assert now["replies"]["DATA"] == {"354": 100}
        assert now["commands"]["QUIT"] == 4
        assert now["listeners"][0] == {
            "address": f"127.0.0.1:{program.port}", "mode": "accept", "delay": None, "tls": False,
            "service": "smtp", "hostname": own_hostname()
        }  # fmt: skip
        assert [worker["title"] for worker in now["workers"]] == [
            "blackhole: worker 1",
            "blackhole: worker 2",
        ]
        wait_for(lambda: figures(program.http)["rates"]["messages"]["10"] > 0, "a rate")
        last = figures(program.http, "?history=1")
        assert 0 < max(filter(None, last["history"]["seconds"]["messages"])) <= 110
        assert 0 < last["rates"]["messages"]["60"] <= last["rates"]["messages"]["peak"] + 0.5 <= 111


def test_a_rejected_message_is_not_counted_as_accepted() -> None:
    port = free_port()
    with Sink(f"--listen=127.0.0.1:{port},mode=bounce") as program:
        program.dashboard()
        assert not any(sent(port) for _ in range(20))
        now = figures(program.http)["messages"]
        assert now["accepted"] == 0
        assert now["deferred"] + now["rejected"] == 20


def test_open_connections_appear_in_stats_and_history(sink: Sink) -> None:
    with smtplib.SMTP("127.0.0.1", sink.port), smtplib.SMTP("127.0.0.1", sink.port):
        wait_for(
            lambda: figures(sink.http, "?history=1")["history"]["seconds"]["open"][-1] == 2, "two are open"
        )
        assert figures(sink.http)["connections"]["open"] == 2
    wait_for(lambda: figures(sink.http)["connections"]["open"] == 0, "all connections are closed")


@pytest.mark.parametrize(("query", "has_history"), [("", False), ("?history=0", False), ("?history=1", True)])
def test_stats_have_the_history_only_if_asked_for(sink: Sink, query: str, has_history: bool) -> None:
    answer = ask(sink.http, f"/stats.json{query}")
    assert ("history" in answer.json) is has_history
    assert (len(answer.body) < 50_000) is not has_history


def test_percentiles_of_nothing_are_null_and_sampled_figures_say_so(sink: Sink) -> None:
    found = figures(sink.http)
    empty = found["histograms"]["delay_seconds"]
    assert (empty["count"], empty["p50"], empty["p99"], empty["mean"]) == (0, None, None, None)
    sampled = {name for name, one in found["histograms"].items() if one["sampled"]}
    assert sampled == {"service_seconds", "client_think_seconds"}
    assert [found["minute"][part]["sampled"] for part in ("sink", "client", "delay")] == [True, True, False]


def test_healthz_and_readyz_answer_200_while_workers_accept(sink: Sink) -> None:
    assert ask(sink.http, "/healthz").status == 200
    assert ask(sink.http, "/readyz").json == {"workers": 2}


def test_readyz_answers_503_while_no_worker_accepts() -> None:
    with Sink("--workers=1", "--drain_timeout=20") as program:
        program.dashboard()
        (worker,) = program.workers()
        with smtplib.SMTP("127.0.0.1", program.port) as client:
            client.docmd("DATA")  # so that it cannot end
            os.kill(worker, signal.SIGTERM)
            answer = wait_for(
                lambda: (answer := ask(program.http, "/readyz")).status == 503 and answer,
                "the worker does not accept",
            )
            assert answer.json == {"workers": 0}
            assert ask(program.http, "/healthz").status == 200
            client.send(b".\r\n")
            assert client.getreply()[0] == 250


# Prometheus


def promtool(text: bytes) -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def metrics(text: bytes) -> dict[str, float]:
    """Return the values of an exposition by name and labels."""
    lines = (line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


@requires("promtool")
def test_metrics_have_the_values_of_the_counters() -> None:
    with Sink() as program:
        program.dashboard()
        send(program.port, 7)
        answer = ask(program.http, "/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        promtool(answer.body)
        found = metrics(answer.body)
        assert found['blackhole_messages_total{outcome="accepted"}'] == 7
        assert found['blackhole_messages_total{outcome="deferred"}'] == 0
        assert found['blackhole_messages_total{outcome="rejected"}'] == 0
        assert found["blackhole_recipients_total"] == 14
        assert found["blackhole_connections_total"] == 1
        assert found["blackhole_open_connections"] == 0
        assert found['blackhole_commands_total{phase="MAIL"}'] == 7
        assert found['blackhole_replies_total{code="354",phase="DATA"}'] == 7
        assert found['blackhole_tls_handshakes_total{result="ok"}'] == 0
        assert found['blackhole_violations_total{rule="bare-lf"}'] == 0
        assert any(name.startswith("blackhole_build_info{") for name in found)
        wait_for(
            lambda: (
                {"blackhole_received_bytes_total", 'blackhole_worker_cpu_seconds_total{worker="1"}'}
                <= {name for name, value in metrics(ask(program.http, "/metrics").body).items() if value}
            ),
            "counters that are written once a second",
        )


def test_metrics_are_openmetrics_for_a_client_that_accepts_it(sink: Sink) -> None:
    answer = ask(sink.http, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.body.endswith(b"# EOF\n")


@requires("prometheus")
def test_prometheus_scrapes_the_metrics(tmp_path: Path) -> None:
    with Sink() as program, ExitStack() as stack:
        program.dashboard()
        send(program.port, 9)
        conf = tmp_path / "prometheus.yml"
        conf.write_text(
            "scrape_configs:\n"
            "- job_name: sink\n"
            "  scrape_interval: 200ms\n"
            "  scrape_timeout: 200ms\n"
            f"  static_configs: [{{targets: ['localhost:{program.http}']}}]\n"
        )
        port = free_port()
        prometheus = stack.enter_context(
            subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={conf}",
                    f"--storage.tsdb.path={tmp_path / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        stack.callback(prometheus.kill)

        def found() -> list[Any]:
            try:
                answer = ask(port, "/api/v1/query?query=blackhole_messages_total")
                return list(answer.json["data"]["result"])
            except (OSError, ValueError, LookupError):
                return []

        series = wait_for(found, "Prometheus has scraped", timeout=60)
        values = {one["metric"]["outcome"]: one["value"][1] for one in series}
        assert values == {"accepted": "9", "deferred": "0", "rejected": "0"}


# Runs, and /wait


def test_a_run_counts_what_happens_between_its_start_and_end() -> None:
    with Sink() as program:
        program.dashboard()
        send(program.port, 5)
        answer = post(program.http, "/runs", {"name": "first"})
        assert (answer.status, answer.headers["location"]) == (201, "/runs/first")
        assert answer.json["running"] is True
        send(program.port, 10)
        between = ask(program.http, "/runs/first").json
        assert (between["running"], between["messages"]["accepted"]) == (True, 10)
        send(program.port, 10)
        report = post(program.http, "/runs/first/stop").json
        send(program.port, 5)
        assert report["running"] is False
        assert report["messages"] == {"accepted": 20, "deferred": 0, "rejected": 0}
        assert report["recipients"] == 40
        assert report["connections"]["total"] == 2
        assert report["replies"]["DATA"] == {"354": 20}
        assert report["rate"]["mean"] == pytest.approx(20 / report["seconds"])
        assert report["rate"]["peak"] >= report["rate"]["mean"]
        assert time.time() - 60 < report["started"] <= time.time()
        again = ask(program.http, "/runs/first").json
        assert again["messages"] == report["messages"]
        assert again["seconds"] == report["seconds"]
        assert post(program.http, "/runs/first/stop").json["seconds"] == report["seconds"]
        assert [one["name"] for one in ask(program.http, "/runs").json] == ["first"]


def test_a_new_run_takes_the_place_of_the_oldest_finished_one() -> None:
    with Sink() as program:
        program.dashboard()
        for number in range(32):
            assert post(program.http, "/runs", {"name": f"run{number}"}).status == 201
        assert post(program.http, "/runs", {"name": "one-more"}).status == 409
        post(program.http, "/runs/run7/stop")
        post(program.http, "/runs/run3/stop")
        assert post(program.http, "/runs", {"name": "one-more"}).status == 201
        names = [one["name"] for one in ask(program.http, "/runs").json]
        assert names == [*(f"run{number}" for number in range(32) if number != 3), "one-more"]


@pytest.mark.parametrize(
    "body",
    [
        "", "{}", "[]", "7", '{"name": 7}', '{"name": ""}', '{"name": "a b"}', '{"name": "a/b"}',
        '{"name": "<b>"}', '{"name": "\\u00e9"}', '{"name": ".."}', f'{{"name": "{"x" * 65}"}}',
        "[" * 3000, "\xff",
    ],
)  # fmt: skip
def test_a_run_without_a_valid_name_is_refused(sink: Sink, body: str) -> None:
    answer = ask(sink.http, "/runs", "POST", body)
    assert answer.status == 400
    assert "name" in answer.json["error"]
    assert ask(sink.http, "/runs").json == []


def test_a_second_run_of_the_same_name_is_refused() -> None:
    with Sink() as program:
        program.dashboard()
        name = "x" * 64
        assert post(program.http, "/runs", {"name": name}).status == 201
        assert post(program.http, "/runs", {"name": name}).status == 409
        assert ask(program.http, f"/runs/{name}").json["name"] == name


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/runs/none"), ("POST", "/runs/none/stop"), ("GET", "/wait?run=none")]
)
def test_an_unknown_run_is_not_found(sink: Sink, method: str, path: str) -> None:
    answer = ask(sink.http, path, method, "" if method == "POST" else None)
    assert (answer.status, answer.json) == (404, {"error": "There is no run none."})


def test_wait_responds_when_so_many_messages_have_arrived() -> None:
    with Sink() as program, ThreadPoolExecutor(1) as pool:
        program.dashboard()
        send(program.port, 5)
        waiting = pool.submit(ask, program.http, "/wait?messages=3&timeout=30")
        time.sleep(0.5)
        send(program.port, 2)
        time.sleep(0.2)
        assert not waiting.done()
        send(program.port, 1)
        answer = waiting.result(20)
        assert (answer.status, answer.json["messages"]) == (200, 3)
        assert answer.json["seconds"] < 20


def test_wait_counts_from_the_start_of_a_run() -> None:
    """A script needs no second process, because messages before the request count."""
    with Sink() as program:
        program.dashboard()
        send(program.port, 5)
        post(program.http, "/runs", {"name": "it"})
        send(program.port, 3)
        assert ask(program.http, "/wait?messages=3&run=it&timeout=20").json["messages"] == 3
        post(program.http, "/runs/it/stop")
        assert ask(program.http, "/wait?messages=3&run=it").status == 409


def test_wait_responds_with_504_after_its_timeout(sink: Sink) -> None:
    answer = ask(sink.http, "/wait?messages=1000000&timeout=0.1")
    assert answer.status == 504
    assert answer.json["messages"] < 1000000


@pytest.mark.parametrize("query", ["messages=0", "messages=x", "messages=nan", "timeout=-1", "timeout=1e9"])
def test_wait_refuses_numbers_outside_its_limits(sink: Sink, query: str) -> None:
    answer = ask(sink.http, f"/wait?{query}")
    assert answer.status == 400
    assert re.match("(messages|timeout): expected a number from", answer.json["error"])


def send_bare_lf(port: int) -> None:
    """Send a message that contains a bare LF."""
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.ehlo("a.example.com")
        for command in ("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA"):
            client.docmd(command)
        client.send(b"a bare\nline feed\r\n.\r\n")
        assert client.getreply()[0] == 250


def test_a_report_covers_the_time_since_the_start_or_a_run() -> None:
    with Sink() as program:
        program.dashboard()
        send_bare_lf(program.port)
        post(program.http, "/runs", {"name": "it"})
        assert ask(program.http, "/runs/it/report?format=json").json["findings"] == []
        send_bare_lf(program.port)
        for path, times in (("/report", 2), ("/runs/it/report", 1)):
            (found,) = ask(program.http, f"{path}?format=json").json["findings"]
            assert (found["rule"], found["sample"]["found"], found["source"]) == (
                "bare-lf",
                times,
                "RFC 5321 2.3.8",
            )
            evidence = found["evidence"]
            assert (evidence["first"] is None) == ("runs" in path), "it was before the run"
            assert [one["phase"] for one in evidence["examples"]] == ["."]
            text = ask(program.http, path)
            assert text.headers["content-type"] == "text/plain; charset=utf-8"
            assert b"MUST   bare-lf" in text.body
            suite = ElementTree.fromstring(ask(program.http, f"{path}?format=junit").body)
            assert suite.get("failures") == "1"
        assert ask(program.http, "/report?format=pdf").status == 400
        assert ask(program.http, "/runs/none/report").status == 404


# Events


def events(port: int, count: int) -> list[tuple[str, Any]]:
    """Return the first events of a stream."""
    found: list[tuple[str, Any]] = []
    with socket.create_connection(("127.0.0.1", port), timeout=20) as viewer, viewer.makefile("rb") as said:
        viewer.sendall(b"GET /events HTTP/1.0\r\nHost: localhost\r\n\r\n")
        for line in said:
            if line.startswith(b"event: "):
                kind = line[7:].strip().decode()
            elif line.startswith(b"data: "):
                found.append((kind, json.loads(line[6:])))
                if len(found) == count:
                    break
    return found


def test_open_and_just_closed_pages_do_not_delay_the_stop() -> None:
    with Sink("--workers=1") as program, ExitStack() as stack:
        program.dashboard()
        pages = [
            stack.enter_context(socket.create_connection(("127.0.0.1", program.http), 20)) for _ in range(16)
        ]
        for page in pages:
            page.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert page.recv(4096).startswith(b"HTTP/1.1 200")
        for page in pages[::2]:
            page.close()
        assert program.stop() == 0
        assert not re.search("ERROR|does not end", program.output())


def test_events_come_once_a_second(sink: Sink) -> None:
    began = time.monotonic()
    found = events(sink.http, 5)
    assert 2 < time.monotonic() - began < 15
    assert [kind for kind, _ in found] == ["past", "now", "now", "now", "now"]
    past = found[0][1]
    assert (len(past["seconds"]["messages"]), past["seconds"]["step"]) == (3599, 1)
    assert (len(past["minutes"]["open"]), past["minutes"]["step"]) == (1439, 60)
    assert {"bare-lf", "no-quit"} <= {rule["name"] for rule in past["rules"]}
    times = [now["time"] for _, now in found[1:]]
    assert times == sorted(times)


def test_viewers_are_limited_and_one_that_does_not_read_is_disconnected() -> None:
    with Sink() as program, ExitStack() as stack:
        program.dashboard()
        lazy = [stack.enter_context(socket.socket()) for _ in range(MAX_VIEWERS - 1)]
        for viewer in lazy:
            viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            viewer.connect(("127.0.0.1", program.http))
            viewer.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert len(events(program.http, 4)) == 4
        late = stack.enter_context(socket.create_connection(("127.0.0.1", program.http)))
        late.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert late.recv(99).startswith(b"HTTP/1.1 200 OK\r\n")
        refused = ask(program.http, "/events")
        assert refused.status == 503
        assert refused.json == {"error": f"{MAX_VIEWERS} pages are open already; close one."}
        send(program.port, 3)
        assert total(program.http) == 3
        wait_for(
            lambda: len(children(program.pid)) == 3 and ask(program.http, "/healthz").status == 200, "alive"
        )
        wait_for(lambda: viewing(program.http), "viewers that do not read are disconnected", timeout=40)


def viewing(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as viewer:
        viewer.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return viewer.recv(12) == b"HTTP/1.1 200"
