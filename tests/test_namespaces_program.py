"""Namespaces of a running server: two jobs with opposite scenarios side by side, with two workers."""

from __future__ import annotations

import json
import smtplib
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.external_programs import path_of, requires
from tests.http_api import Sink, ask, post
from tests.program import free_port, run, wait_for

REFUSES = '[[rule]]\nname = "full"\nphase = "RCPT"\nreply = "552 5.2.2 Mailbox full"\n'
DEFERS = '[[rule]]\nname = "later"\nphase = "."\nreply = "451 4.3.0 Later"\n'


class NamespacedSink(Sink):
    """A sink whose listeners have names."""

    unix = ""
    """Path of the UNIX socket."""
    pidfile = ""


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamespacedSink]:
    folder = tmp_path_factory.mktemp("namespaces")
    unix = folder / "payments.sock"
    port, http = free_port(), free_port()
    with NamespacedSink(
        f"--pid={folder}/pid",
        f"--listen=127.0.0.1:{port}",
        f"--listen=unix:{unix},lmtp",
        f"--dashboard=127.0.0.1:{http}",
        "--namespace-by=tag,user,helo,listener",
        "--auth=any",
        "--auth-plaintext",
        "--recent=1000",
        "--workers=2",
    ) as program:
        program.port, program.http = port, http
        program.unix, program.pidfile = str(unix), f"{folder}/pid"
        yield program


def deliver(
    port: int, recipient: str, messages: int = 1, helo: str = "client.test", user: str = ""
) -> list[int]:
    """Send messages, each in a connection of its own, and return the codes of their replies."""
    codes = []
    for _ in range(messages):
        with smtplib.SMTP("127.0.0.1", port, local_hostname=helo, timeout=30) as client:
            if user:
                client.login(user, "x")
            try:
                client.sendmail("ann@example.com", [recipient], "Subject: x\r\n\r\nx\r\n")
                codes.append(250)
            except smtplib.SMTPRecipientsRefused as refused:
                codes += [code for code, _ in refused.recipients.values()]
            except smtplib.SMTPDataError as error:
                codes.append(error.smtp_code)
    return codes


def put(sink: NamespacedSink, path: str, text: str = "") -> int:
    return ask(sink.http, path, "PUT", text).status


def test_two_jobs_with_opposite_scenarios_see_only_their_own(sink: NamespacedSink) -> None:
    """Both send at the same time, over two workers; each finds exactly its own replies and figures."""
    assert put(sink, "/namespaces/job-a/scenario", REFUSES) == 200
    assert put(sink, "/namespaces/job-b/scenario", DEFERS) == 200
    found: dict[str, list[int]] = {}

    def job(name: str) -> None:
        found[name] = deliver(sink.port, f"bob+ns.{name}@example.com", 20)

    jobs = [threading.Thread(target=job, args=(name,)) for name in ("job-a", "job-b", "nobody")]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join()
    assert {name: Counter(codes) for name, codes in found.items()} == {
        "job-a": {552: 20},
        "job-b": {451: 20},
        "nobody": {250: 20},
    }
    waited = ask(sink.http, "/namespaces/job-b/wait?messages=20&timeout=20")
    assert (waited.status, waited.json["messages"]) == (200, 20)
    assert ask(sink.http, "/namespaces/job-a/wait?messages=1&timeout=0").status == 504

    def refused() -> bool:
        return bool(report(sink, "job-a")["rule_hits"] == {"full": 20})

    wait_for(refused, "all refusals are counted")
    of_a, of_b = report(sink, "job-a"), report(sink, "job-b")
    assert (of_a["messages"]["deferred"], of_a["recipients"], of_a["connections"]) == (0, 0, 20)
    assert of_b["messages"] == {"accepted": 0, "deferred": 20, "rejected": 0}
    assert (of_b["rule_hits"], of_b["connections"]) == ({"later": 20}, 20)
    figures = ask(sink.http, "/namespaces/job-b/stats.json").json
    assert (figures["messages"], figures["rule_hits"]) == (of_b["messages"], of_b["rule_hits"])
    assert (figures["scenario"]["names"], figures["runs"]) == (["later"], [])
    listed = {one["name"]: one for one in ask(sink.http, "/namespaces").json}
    assert (listed["job-b"]["messages"], listed["job-b"]["waiting"]) == (20, 0)
    assert recipients(sink, "job-a") == {"bob+ns.job-a@example.com": 20}
    assert recipients(sink, "job-b") == {"bob+ns.job-b@example.com": 20}


def report(sink: NamespacedSink, namespace: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = ask(sink.http, f"/namespaces/{namespace}/report?format=json").json
    return found


def recipients(sink: NamespacedSink, namespace: str) -> Counter[str]:
    found = ask(sink.http, f"/namespaces/{namespace}/recent?limit=500").json["transactions"]
    assert {one["namespace"] for one in found} <= {namespace}
    return Counter(address for one in found for address in (*one["recipients"], *one["refused_recipients"]))


def test_one_shot_replies_are_counted_exactly_in_their_namespace(sink: NamespacedSink) -> None:
    rule = {"phase": "RCPT", "reply": "450 4.2.0 Later", "count": 3}
    assert post(sink.http, "/namespaces/shots/next", rule).status == 200
    assert ask(sink.http, "/namespaces/shots").json["waiting"] == rule["count"]
    assert post(sink.http, "/next", {"phase": "RCPT", "reply": "450 4.7.0 Other", "count": 1}).status == 200
    assert Counter(deliver(sink.port, "bob+ns.shots@example.com", 8)) == {450: 3, 250: 5}
    assert deliver(sink.port, "bob@example.com", 2) == [450, 250]
    assert ask(sink.http, "/namespaces/shots/next").json == []
    post(sink.http, "/namespaces/shots/next", rule)
    assert ask(sink.http, "/namespaces/shots/next", "DELETE").json["next"] == []
    assert deliver(sink.port, "bob+ns.shots@example.com") == [250]


def test_user_helo_and_listener_choose_a_namespace(sink: NamespacedSink) -> None:
    for name in ("ci-user", "ci-helo", str(sink.port)):
        assert put(sink, f"/namespaces/{name}/scenario", REFUSES) == 200
    assert deliver(sink.port, "bob@example.com") == [552]
    assert ask(sink.http, f"/namespaces/{sink.port}", "DELETE").status == 200
    assert deliver(sink.port, "bob@example.com") == [250]
    assert deliver(sink.port, "bob@example.com", user="ci-user") == [552]
    assert deliver(sink.port, "bob@example.com", helo="CI-Helo") == [552]
    put(sink, "/namespaces/tagged")
    assert deliver(sink.port, "bob+ns.tagged@example.com", helo="ci-helo") == [250]


def test_runs_of_a_namespace_count_its_own_messages(sink: NamespacedSink) -> None:
    assert put(sink, "/namespaces/runner") == 201
    assert put(sink, "/namespaces/runner") == 200
    before = deliver(sink.port, "bob+ns.runner@example.com", 2)
    made = post(sink.http, "/namespaces/runner/runs", {"name": "first"})
    assert (made.status, made.headers["location"]) == (201, "/namespaces/runner/runs/first")
    assert post(sink.http, "/namespaces/runner/runs", {"name": "first"}).status == 409
    deliver(sink.port, "bob+ns.runner@example.com", 3)
    deliver(sink.port, "bob@example.com", 2)
    waited = ask(sink.http, "/namespaces/runner/wait?messages=3&timeout=20&run=first")
    assert (len(before), waited.json["messages"]) == (2, 3)
    assert post(sink.http, "/namespaces/runner/runs/first/stop").json["total"] == 3
    deliver(sink.port, "bob+ns.runner@example.com")
    assert ask(sink.http, "/namespaces/runner/runs/first").json["messages"]["accepted"] == 3
    assert ask(sink.http, "/namespaces/runner/wait?run=first").status == 409
    assert [one["name"] for one in ask(sink.http, "/namespaces/runner/runs").json] == ["first"]
    assert b"3 messages" in ask(sink.http, "/namespaces/runner/runs/first/report").body
    for number in range(8):
        assert post(sink.http, "/namespaces/runner/runs", {"name": f"n{number}"}).status == 201
    full = post(sink.http, "/namespaces/runner/runs", {"name": "too-many"})
    assert (full.status, b"8 runs are running" in full.body) == (409, True)
    assert ask(sink.http, "/namespaces/runner/runs/first").status == 404


def test_namespace_that_is_removed_is_gone_with_all_its_orders(sink: NamespacedSink) -> None:
    assert put(sink, "/namespaces/short/scenario", REFUSES) == 200
    assert deliver(sink.port, "bob+ns.short@example.com") == [552]
    assert ask(sink.http, "/namespaces/SHORT", "DELETE").json == {"name": "short"}
    assert deliver(sink.port, "bob+ns.short@example.com") == [250]
    for path in ("", "/scenario", "/next", "/recent", "/wait", "/report", "/runs", "/runs/x"):
        assert ask(sink.http, f"/namespaces/short{path}").status == 404, path
    for path in ("", "/scenario", "/next"):
        assert ask(sink.http, f"/namespaces/short{path}", "DELETE").status == 404, path
    assert put(sink, "/namespaces/short") == 201
    assert ask(sink.http, "/namespaces/short/recent").json["transactions"] == []
    assert "short" in [one["name"] for one in ask(sink.http, "/namespaces").json]
    assert ask(sink.http, "/namespaces/short").json["messages"] == 0


def test_mistakes_in_an_order_are_told_and_make_no_namespace(sink: NamespacedSink) -> None:
    wrong = ask(sink.http, "/namespaces/typo/scenario", "PUT", '[[rule]]\nphase = "RCTP"\n')
    assert wrong.status == 400 and "RCTP" in wrong.json["error"]
    assert ask(sink.http, "/namespaces/typo").status == 404
    assert ask(sink.http, "/namespaces/a%20b").status == 404
    assert post(sink.http, "/namespaces/typo/scenario", {"name": "nothing"}).status == 400


def test_scenario_of_a_namespace_is_told_and_restored(sink: NamespacedSink) -> None:
    assert post(sink.http, "/namespaces/switch/scenario", {"name": "profile:greylist"}).status == 200
    told = ask(sink.http, "/namespaces/switch/scenario").json
    assert (told["name"], told["ordered"]) == ("profile:greylist", True)
    assert ask(sink.http, "/scenario").json["ordered"] is False
    assert deliver(sink.port, "bob+ns.switch@example.com") == [450]
    assert ask(sink.http, "/namespaces/switch/scenario", "DELETE").json["name"] == "loaded"
    assert deliver(sink.port, "bob+ns.switch@example.com") == [250]


@requires("swaks")
def test_swaks_meets_the_scenario_of_its_tag(sink: NamespacedSink) -> None:
    put(sink, "/namespaces/swaks/scenario", DEFERS)

    def swaks(recipient: str) -> str:
        done = subprocess.run(
            [
                path_of("swaks"),
                f"--server=127.0.0.1:{sink.port}",
                f"--to={recipient}",
                "--from=a@example.com",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout

    assert "<** 451 4.3.0 Later" in swaks("bob+ns.swaks@example.com")
    assert "<-  250 2.0.0" in swaks("bob@example.com")


def test_command_line_shows_one_namespace(sink: NamespacedSink) -> None:
    put(sink, "/namespaces/shell")
    deliver(sink.port, "bob+ns.shell@example.com", 2)

    def shown(action: str, namespace: str = "Shell") -> subprocess.CompletedProcess[str]:
        return run(action, "--json", f"--namespace={namespace}", f"--pid={sink.pidfile}")

    assert json.loads(shown("report").stdout)["messages"]["accepted"] == 2
    transactions = [json.loads(line) for line in shown("recent").stdout.splitlines()]
    assert [one["recipients"] for one in transactions] == [["bob+ns.shell@example.com"]] * 2
    missing = shown("report", "nothing")
    assert (missing.returncode, "there is no namespace nothing" in missing.stderr) == (78, True)


def test_socket_of_a_listener_names_a_namespace(sink: NamespacedSink) -> None:
    assert put(sink, "/namespaces/payments/scenario", DEFERS) == 200
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as replies:
        client.settimeout(30)
        client.connect(sink.unix)
        client.sendall(
            b"LHLO client.test\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n"
            b"RCPT TO:<c+ns.lmtp@example.com>\r\nDATA\r\n"
        )
        assert any(line.startswith(b"354") for line in iter(replies.readline, b""))
        client.sendall(b"Subject: x\r\n\r\nx\r\n.\r\nQUIT\r\n")
        codes = [line[:3] for line in replies]
    assert codes == [b"451", b"451", b"221"]
    assert recipients(sink, "payments") == {"b@example.com": 1, "c+ns.lmtp@example.com": 1}


def test_sink_without_namespaces_says_how_to_have_them() -> None:
    with Sink("--workers=1") as program:
        for method, path in (("GET", ""), ("PUT", "/a"), ("GET", "/a/wait"), ("PUT", "/a/scenario")):
            answer = ask(program.http, f"/namespaces{path}", method)
            assert (answer.status, b"--namespace-by" in answer.body) == (404, True)
