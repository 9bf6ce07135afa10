"""The last transactions of the real program: over HTTP, on the command line, after reloads and crashes."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Certificate
from tests.external_programs import output_of, path_of, requires
from tests.http_api import Sink, ask
from tests.postfix import RECIPIENT, SENDER, Postfix, requires_postfix, smtp_source
from tests.program import SCRIPT, descriptors, environment, free_port, run, scenario_option, wait_for
from tests.resource_usage import memory

MAP = "/memfd:blackhole.store.recent"

REFUSES = """
[[rule]]
name = "nobody"
phase = "RCPT"
recipient = "nobody@*"
reply = "550 5.1.1 No such user"
"""


def recent(sink: Sink, query: str = "") -> Any:
    answer = ask(sink.http, f"/recent?{query}")
    assert answer.status == 200, answer.body
    return answer.json


def send(sink: Sink, *recipients: str, subject: str = "hello") -> None:
    with smtplib.SMTP("127.0.0.1", sink.port, "app.example.com", timeout=20) as client:
        text = f"Subject: {subject}\r\n\r\nsecret\r\n"
        client.sendmail("shop@example.com", recipients or ["bob@example.com"], text)


def subjects(found: Any) -> list[str]:
    return [one["fields"].get("Subject", "") for one in found["transactions"]]


@pytest.fixture(scope="module")
def sink(folder: Path) -> Iterator[Sink]:
    with Sink(
        "--recent=200", "--workers=2", f"--pid={folder}/pid", scenario_option(folder, REFUSES)
    ) as program:
        program.dashboard()
        program.wait_until_accepting(2)
        yield program


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recent")


@pytest.fixture(scope="module")
def command(folder: Path) -> list[str]:
    return [f"--pid={folder}/pid", "recent"]


# Over HTTP.


def test_transaction_is_shown_once_the_client_has_read_the_final_reply(sink: Sink) -> None:
    for number in range(20):
        send(sink, "bob@example.com", "nobody@example.com", subject=f"at once {number}")
        found = recent(sink, "limit=1")
        (one,) = found["transactions"]
        assert one["fields"] == {"Subject": f"at once {number}"}
    assert (one["sender"], one["recipients"]) == ("shop@example.com", ["bob@example.com"])
    assert (one["refused_recipients"], one["rule"]) == (["nobody@example.com"], "nobody")
    assert (one["client"], one["helo"], one["tls"]) == ("127.0.0.1", "app.example.com", "")
    assert one["listener"] == f"127.0.0.1:{sink.port}"
    assert one["exchanges"][-1]["code"] == 250
    assert abs(one["time"] - time.time()) < 60
    assert found["kept"] == 200
    assert b"secret" not in ask(sink.http, "/recent").body


def test_filters_of_the_query(sink: Sink) -> None:
    send(sink, "first@filter.test", subject="one")
    began = time.time()
    send(sink, "second@filter.test", subject="two")
    assert subjects(recent(sink, "recipient=*@filter.test")) == ["one", "two"]
    assert subjects(recent(sink, "recipient=SECOND@filter.test")) == ["two"]
    assert subjects(recent(sink, f"recipient=*@filter.test&since={began:.6f}")) == ["two"]
    assert subjects(recent(sink, "recipient=*@filter.test&limit=1")) == ["two"]
    assert subjects(recent(sink, "recipient=*@filter.test&sender=nobody@*")) == []
    assert subjects(recent(sink, "recipient=*@filter.test&client=192.0.2.1")) == []
    assert subjects(recent(sink, "recipient=*@filter.test&outcome=accepted")) == ["one", "two"]
    assert subjects(recent(sink, "recipient=*@filter.test&outcome=rejected")) == []


def test_follower_gets_what_comes_and_nothing_twice(sink: Sink) -> None:
    cursor = recent(sink, "limit=1")["next"]
    assert recent(sink, f"since={cursor}")["transactions"] == []
    for number in range(7):
        send(sink, subject=f"followed {number}")
    seen: list[str] = []
    while True:
        found = recent(sink, f"since={cursor}&limit=3")
        seen += subjects(found)
        cursor = found["next"]
        if not found["more"]:
            break
    assert sorted(seen) == [f"followed {number}" for number in range(7)]


def test_request_waits_for_the_next_transaction(sink: Sink) -> None:
    cursor = recent(sink, "limit=1")["next"]
    sender = threading.Timer(0.3, send, (sink,), {"subject": "waited for"})
    sender.start()
    began = time.monotonic()
    assert subjects(recent(sink, f"since={cursor}&timeout=20")) == ["waited for"]
    assert 0.2 < time.monotonic() - began < 10
    sender.join()
    began = time.monotonic()
    assert recent(sink, "recipient=nobody@nowhere.test&timeout=0.3")["transactions"] == []
    assert time.monotonic() - began >= 0.3


def test_requests_that_wait_are_limited(sink: Sink) -> None:
    cursor = recent(sink, "limit=1")["next"]
    request = f"GET /recent?since={cursor}&timeout=30 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    clients = []
    try:
        for _ in range(64):
            clients.append(socket.create_connection(("127.0.0.1", sink.http), timeout=20))
            clients[-1].sendall(request)

        def refused() -> bool:
            if len(clients) < 120:  # a record that comes late ends the requests that wait already
                clients.append(socket.create_connection(("127.0.0.1", sink.http), timeout=20))
                clients[-1].sendall(request)
            return ask(sink.http, f"/recent?since={cursor}&timeout=0.1").status == 503

        wait_for(refused, "no further request may wait")
        assert recent(sink, f"since={cursor}")["transactions"] == []
    finally:
        for client in clients:
            client.close()
    wait_for(lambda: ask(sink.http, f"/recent?since={cursor}&timeout=0.1").status == 200, "they are gone")


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("since=nonsense!", "since: expected the cursor of an earlier answer, or seconds since 1970."),
        ("limit=0", "limit: expected a number from 1 to 500."),
        ("limit=501", "limit: expected a number from 1 to 500."),
        ("timeout=61", "timeout: expected a number from 0 to 60."),
        ("outcome=great", "outcome: expected one of accepted, deferred, rejected, aborted, disconnected."),
        (f"recipient={'x' * 257}", "recipient: expected at most 256 characters."),
    ],
)
def test_error_of_a_query(sink: Sink, query: str, error: str) -> None:
    answer = ask(sink.http, f"/recent?{query}")
    assert (answer.status, answer.json) == (400, {"error": error})


def test_pages_of_other_sites_cannot_read_them(sink: Sink) -> None:
    assert ask(sink.http, "/recent", Host="evil.example").status == 421
    assert ask(sink.http, "/recent", Sec_Fetch_Site="cross-site").status == 403
    assert ask(sink.http, "/recent", Origin="http://evil.example").status == 403


def test_cursor_of_another_server_begins_anew(sink: Sink) -> None:
    send(sink, subject="anew")
    assert "anew" in subjects(recent(sink, "since=18ec61225a752bc8.0-999999&limit=500"))


# On the command line.


def test_action_recent_prints_a_line_each(sink: Sink, command: list[str]) -> None:
    send(sink, "printed@example.com", "nobody@example.com", subject="printed")
    lines = run(*command).stdout.splitlines()
    assert (
        "127.0.0.1 accepted: <shop@example.com> to <printed@example.com>, refused <nobody@example.com>; "
        "28 octets; 250 2.0.0 OK: queued as" in lines[-1]
    )
    assert lines[-1].endswith('; rule nobody; Subject "printed"')


def test_action_recent_prints_the_conversation(sink: Sink, command: list[str]) -> None:
    send(sink, "talk@example.com", "nobody@example.com", subject="talk")
    text = run(*command, "--conversation").stdout
    last = text[text.rindex("accepted:") :]
    for line in (
        "    S: 220 ", "    C: ehlo app.example.com\n", "    C: rcpt TO:<talk@example.com>\n",
        "    S: 550 5.1.1 No such user   [rule nobody]\n", "    C: (message of 25 octets)\n",
    ):  # fmt: skip
        assert line in last


def test_action_recent_prints_json(sink: Sink, command: list[str]) -> None:
    send(sink, subject="as JSON")
    lines = run(*command, "--json").stdout.splitlines()
    assert json.loads(lines[-1])["fields"] == {"Subject": "as JSON"}


def test_action_recent_follows_until_it_is_interrupted(sink: Sink, command: list[str]) -> None:
    send(sink, subject="before")
    with subprocess.Popen(
        [*SCRIPT, *command, "--follow", "--json"], stdout=subprocess.PIPE, env=environment()
    ) as follower:
        assert follower.stdout is not None
        while json.loads(follower.stdout.readline())["fields"] != {"Subject": "before"}:
            pass
        for number in range(3):
            send(sink, subject=f"live {number}")
            assert json.loads(follower.stdout.readline())["fields"] == {"Subject": f"live {number}"}
        follower.send_signal(signal.SIGINT)
        assert follower.wait(10) == 0


def test_action_recent_follows_until_the_reader_of_its_output_ends(sink: Sink, command: list[str]) -> None:
    text = " ".join((*SCRIPT, *command, "--follow")) + " | head -1"
    with subprocess.Popen(["sh", "-c", text], stdout=subprocess.PIPE, env=environment()) as follower:
        assert follower.stdout is not None
        send(sink)
        assert follower.stdout.readline()
        for _ in range(3):
            send(sink)
            time.sleep(0.15)
        assert follower.wait(10) == 0


def test_action_recent_needs_a_server(tmp_path: Path) -> None:
    assert run("recent", f"--pid={tmp_path}/pid").returncode == 7


def test_server_without_recent_has_no_memory_for_it(tmp_path: Path) -> None:
    with Sink(f"--pid={tmp_path}/pid") as program:
        program.dashboard()
        answer = ask(program.http, "/recent")
        assert answer.status == 404
        assert "--recent 1000" in answer.json["error"]
        assert not any(one.startswith(MAP) for one in descriptors(program.pid))
        result = run(f"--pid={tmp_path}/pid", "recent")
        assert (result.returncode, "start it with --recent 1000" in result.stderr) == (os.EX_CONFIG, True)


def test_follower_ends_with_the_server(tmp_path: Path) -> None:
    with Sink("--recent=10", f"--pid={tmp_path}/pid") as program:
        follow = [*SCRIPT, f"--pid={tmp_path}/pid", "recent", "--follow"]
        with subprocess.Popen(
            follow, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        ) as follower:
            assert follower.stdout is not None
            send(program)
            assert b"accepted" in follower.stdout.readline()
            program.stop()
            assert follower.wait(10) == os.EX_UNAVAILABLE


# Over the life of a server.


def test_transactions_survive_workers_dashboards_and_reloads(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    conf.write_text("recent = 50\n")
    address = ("--host=127.0.0.1", f"--port={free_port()}")
    with Sink("--workers=2", f"--conf={conf}", *address) as program:
        dashboard = program.dashboard()
        program.wait_until_accepting(2)
        wanted = []
        for number in range(6):
            send(program, subject=str(number))
            wanted.append(str(number))
            if number == 1:
                for worker in program.workers():
                    os.kill(worker, signal.SIGKILL)
                wait_for(lambda: len(program.workers()) == 2, "both are replaced")
            elif number == 2:
                os.kill(dashboard, signal.SIGKILL)
            elif number == 3:
                _reload(program)
            wait_for(lambda: _accepts(program), "it accepts mail again")
        wait_for(lambda: program.dashboard(), "the dashboard answers")
        assert subjects(recent(program)) == wanted
        conf.write_text("recent = 60\nrecent_fields = from\n")
        _reload(program)
        wait_for(lambda: ask(program.http, "/recent").json.get("kept") == 60, "the new number holds")
        wait_for(lambda: sum(one.startswith(MAP) for one in descriptors(program.pid)) == 1, "one map is left")
        send(program)
        assert recent(program)["transactions"][-1]["fields"] == {}


def _reload(program: Sink) -> None:
    before = set(program.workers())
    os.kill(program.pid, signal.SIGHUP)
    wait_for(lambda: before.isdisjoint(program.workers()), "the reload has ended")


def _accepts(program: Sink) -> bool:
    try:
        with smtplib.SMTP("127.0.0.1", program.port, timeout=5) as client:
            return client.noop()[0] == 250
    except (OSError, smtplib.SMTPException):
        return False


def test_violation_at_the_end_of_a_connection_is_added(sink: Sink) -> None:
    found = recent(sink, "limit=1")
    with socket.create_connection(("127.0.0.1", sink.port), timeout=10) as client:
        replies = client.makefile("rb")
        replies.readline()
        for line in (
            b"HELO c.example.com\r\n", b"MAIL FROM:<a@end.test>\r\n", b"RCPT TO:<b@end.test>\r\n",
            b"DATA\r\n", b"x\r\n.\r\n",
        ):  # fmt: skip
            client.sendall(line)
            replies.readline()
        (one,) = recent(sink, f"since={found['next']}")["transactions"]
        assert one["violations"] == []
        cursor = recent(sink, f"since={found['next']}")["next"]
        replies.close()
    again = recent(sink, f"since={cursor}&timeout=20")["transactions"]
    assert [(two["id"], two["violations"]) for two in again] == [
        (one["id"], [{"name": "no-quit", "line": ""}])
    ]
    assert recent(sink, "limit=1")["transactions"] == again


def test_timeout_of_the_server_is_the_last_reply() -> None:
    with Sink("--recent=10", "--timeout=1", "--workers=1") as program:
        program.dashboard()
        with socket.create_connection(("127.0.0.1", program.port), timeout=20) as client:
            client.sendall(b"MAIL FROM:<a@b.test>\r\n")
            while client.recv(1000):
                pass
        (one,) = wait_for(lambda: recent(program)["transactions"], "it is recorded")
        assert (one["outcome"], one["exchanges"][-1]["code"], one["exchanges"][-1]["phase"]) == (
            "deferred",
            421,
            "",
        )


# Real senders.


@requires("swaks")
@pytest.mark.parametrize("how", ["--tls", "--tls-on-connect", "--pipeline"])
def test_swaks_is_recorded_with_its_tls(certificate: Certificate, how: str) -> None:
    tls_port = free_port()
    tls = (f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}", f"--ssl_port={tls_port}")
    with Sink("--recent=10", "--workers=1", *tls) as program:
        program.dashboard()
        port = tls_port if how == "--tls-on-connect" else program.port
        server = ("--server=127.0.0.1", f"--port={port}", f"--from={SENDER}", f"--to={RECIPIENT}")
        output_of(path_of("swaks"), *server, "--helo=client.test", "--h-Subject=x", how)
        (one,) = recent(program)["transactions"]
        assert (one["sender"], one["recipients"], one["helo"]) == (SENDER, [RECIPIENT], "client.test")
        assert one["tls"].startswith("TLSv1.") == (how != "--pipeline")
        assert one["fields"]["Subject"] == "x"
        phases = [exchange["phase"] for exchange in one["exchanges"]]
        assert phases[-4:] == ["MAIL", "RCPT", "DATA", "."]
        assert ("STARTTLS" in phases) == (how == "--tls")


@requires_postfix
def test_postfix_is_recorded(postfix_folder: Path) -> None:
    with Sink("--recent=10", "--workers=1") as program:
        program.dashboard()
        with Postfix(postfix_folder, program.address) as postfix:
            postfix.send("Subject: from a queue\n\nHello\n", RECIPIENT, "carol@example.com")
            wait_for(lambda: postfix.has_delivered(2), "Postfix has delivered it")
        (one,) = recent(program)["transactions"]
        assert (one["sender"], one["recipients"]) == (SENDER, [RECIPIENT, "carol@example.com"])
        assert one["fields"]["Subject"] == "from a queue"
        assert one["fields"]["Message-ID"].startswith("<")


@requires("smtp-source")
def test_memory_and_number_are_bounded_under_load() -> None:
    with Sink("--recent=500", "--workers=2") as program:
        program.dashboard()
        program.wait_until_accepting(2)
        subprocess.run(smtp_source(program.address, 3000, "-d", connections=10), check=True, timeout=60)
        before = [memory(worker)["Pss_Anon"] for worker in program.workers()]
        subprocess.run(smtp_source(program.address, 3000, "-d", connections=10), check=True, timeout=60)
        found = recent(program, "limit=500")
        assert len(found["transactions"]) == 500
        times = [one["time"] for one in found["transactions"]]
        assert times == sorted(times)
        assert len({one["id"] for one in found["transactions"]}) == 500
        after = [memory(worker)["Pss_Anon"] for worker in program.workers()]
        assert max(map(int.__sub__, after, before)) < 2048
