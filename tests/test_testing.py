"""Servers for the tests of others: blackhole.testing and the pytest plugin."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from blackhole.testing import AsyncSink, Sink, SinkError, Transaction
from blackhole.testing.launcher import Launcher, clean_environment
from tests.certificates import Certificate
from tests.program import ROOT, alive, children, environment, wait_for

EXAMPLES = dict(
    re.findall(
        r"^```python\n# (test_\w+\.py)\n(.*?)^```$", (ROOT / "docs/testing.md").read_text(), re.M | re.S
    )
)
"""The examples of the document: name of the file -> its text."""

PYTEST_OPTIONS = ["-p", "no:cacheprovider", "-p", "no:schemathesis", "--no-header", "-W", "error"]
"""The plugin of schemathesis, which no test needs, takes a second of each process."""

REFUSE = '[[rule]]\nphase = "RCPT"\nreply = "550 5.1.1 No such user"\n'


def send(sink: Sink | AsyncSink, messages: int = 1) -> None:
    with smtplib.SMTP(sink.host, sink.port, local_hostname="app.example.com", timeout=30) as client:
        for _ in range(messages):
            client.sendmail("a@example.com", ["b@example.com"], "Subject: x\r\n\r\nx\r\n")


def run_pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of a folder in a process of its own, as those who use the plugin do."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", *PYTEST_OPTIONS, *options],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def write_tests(folder: Path, text: str) -> None:
    (folder / "pytest.ini").write_text("[pytest]\nblackhole_options =\n    hostname = ini.test\n")
    (folder / "test_it.py").write_text(text)


# Sink


def test_message_is_there_when_its_sender_has_read_the_reply() -> None:
    with Sink(workers=2) as sink:
        for number in range(1, 31):
            send(sink)
            assert len(sink.messages) == number


def test_message_is_a_frozen_value() -> None:
    with Sink(hostname="mx.test", recent_fields="subject,X-Tag") as sink:
        with smtplib.SMTP(sink.host, sink.port, local_hostname="app.example.com", timeout=30) as client:
            text = "From: a\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nx-tag: 7\r\n\r\nsecret\r\n"
            client.sendmail("a@example.com", ["b@example.com", "c@example.com"], text)
        (message,) = sink.messages
        address = f"{sink.host}:{sink.port}"
    assert isinstance(message, Transaction)
    assert (message.sender, message.recipients) == ("a@example.com", ("b@example.com", "c@example.com"))
    assert (message.size, message.accepted, message.code) == (len(text), True, 250)
    assert (message.client, message.helo, message.listener) == ("127.0.0.1", "app.example.com", address)
    assert message.fields == {"subject": "=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "X-Tag": "7"}
    assert message.subject == "Grüße"
    assert [exchange.phase for exchange in message.exchanges] == [
        *("CONNECT", "EHLO", "MAIL", "RCPT", "RCPT", "DATA", ".")
    ]
    assert abs(message.time - time.time()) < 60
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.sender = ""  # type: ignore[misc]


def test_refused_transactions_are_no_messages() -> None:
    with Sink(scenario=REFUSE) as sink:
        with pytest.raises(smtplib.SMTPException):
            send(sink)
        assert (sink.messages, sink.received) == ([], 0)
        (one,) = wait_for(lambda: sink.transactions, "it is there")
        assert (one.outcome, one.refused_recipients, one.rule) == ("rejected", ("b@example.com",), "1")


def test_message_whose_reply_was_cut_off_is_no_message_but_a_transaction() -> None:
    with Sink(scenario='[[rule]]\nphase = "."\nthen = "close-before-reply"\n') as sink:
        with pytest.raises(smtplib.SMTPException):
            send(sink)
        assert (sink.messages, sink.received) == ([], 0)
        assert [one.outcome for one in sink.transactions] == ["disconnected"]


def test_messages_of_a_burst_are_as_many_as_were_received() -> None:
    with Sink(recent=50) as sink:
        send(sink, 20)
        assert sink.wait(messages=20) == len(sink.messages) == 20
        sink.reset()
        assert sink.messages == []
        send(sink, 80)
        assert len(sink.messages) == 50
    assert len(sink.messages) == 50, "after the stop"


def test_sink_that_remembers_nothing_says_so() -> None:
    with Sink(recent=0) as sink:
        send(sink)
        assert sink.wait() == 1
        with pytest.raises(SinkError, match="recent=0"):
            _ = sink.messages
        sink.reset()
    with pytest.raises(SinkError, match="never started"):
        _ = Sink().transactions


def test_message_is_counted_and_the_report_finds_no_violation() -> None:
    with Sink() as sink:
        assert sink.received == 0
        send(sink, 3)
        assert sink.wait(messages=3, timeout=5) == 3
        sink.assert_no_violations()
    assert sink.report()["messages"] == {"accepted": 3, "deferred": 0, "rejected": 0}, "after the stop"


def test_second_start_takes_a_fraction_of_a_second() -> None:
    with Sink():
        began = time.monotonic()
        with Sink() as second:
            started = time.monotonic()
        stopped = time.monotonic()
    assert second.received == 0
    # Usually 0.05 and 0.01: the machine may be busy.
    assert started - began < 3, "the launcher had to import nothing"
    assert stopped - started < 3


def test_options_reach_the_server() -> None:
    with Sink("bounce", hostname="mx.test", strict=True, trusted=["none"], max_messages=3) as sink:
        with smtplib.SMTP(sink.host, sink.port) as client:
            assert b"mx.test" in client.ehlo()[1]
            assert client.rcpt("b@example.com")[0] == 503
        with pytest.raises(smtplib.SMTPResponseException):
            send(sink)


def test_ipv6_address_is_served() -> None:
    with Sink(host="::1") as sink:
        send(sink)
        assert sink.wait() == 1


def test_certificate_opens_a_port_for_implicit_tls(certificate: Certificate) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        Sink(ssl_cert=str(certificate.cert), ssl_key=str(certificate.key)) as sink,
        smtplib.SMTP_SSL(sink.host, sink.tls_port, context=context) as client,
    ):
        assert client.noop()[0] == 250


def test_client_can_trust_the_authority_of_the_tls_menu() -> None:
    with Sink(tls_menu="sni", hostname="mx.test") as sink:
        context = ssl.create_default_context(cadata=sink.authority)
        for name, error in (("mx.test", ""), ("expired.mx.test", "certificate has expired")):
            with socket.create_connection((sink.host, sink.tls_port), 20) as plain:
                if error:
                    with pytest.raises(ssl.SSLCertVerificationError, match=error):
                        context.wrap_socket(plain, server_hostname=name)
                else:
                    with context.wrap_socket(plain, server_hostname=name) as client:
                        assert client.recv(4096).startswith(b"220 mx.test ")
    assert sink.authority == ""


@pytest.mark.parametrize("form", ["text", "path"])
def test_scenario_is_a_text_or_a_path(form: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(REFUSE)
    with Sink(scenario=REFUSE if form == "text" else path) as sink, pytest.raises(smtplib.SMTPException):
        send(sink)


def test_scenario_is_a_profile() -> None:
    with Sink(scenario="profile:outage") as sink:
        assert sink.request("GET", "/scenario")["names"] == ["going down", "no route", "down", "coming up"]


def test_next_replies_are_given_once_and_then_no_more() -> None:
    with Sink() as sink:
        sink.next("RCPT", "451 4.3.0 Try again", count=2, recipient="b@*")
        for _ in range(2):
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                send(sink)
        send(sink)
        assert sink.wait() == 1


def test_reset_restores_the_scenario_and_counts_from_zero() -> None:
    with Sink() as sink:
        send(sink)
        sink.next("MAIL", "451 4.3.0 Try again")
        sink.load_scenario(REFUSE)
        with pytest.raises(smtplib.SMTPException):
            send(sink)
        sink.reset()
        assert sink.received == 0
        send(sink)
        assert (sink.wait(), sink.report()["recipients"]) == (1, 1)


def test_violations_are_an_assertion_error_from_their_level_on() -> None:
    with Sink() as sink:
        with smtplib.SMTP(sink.host, sink.port, local_hostname="nodots") as client:
            client.ehlo()
        sink.assert_no_violations(level="must")
        with pytest.raises(AssertionError, match="SHOULD hello-name"):
            sink.assert_no_violations()


def test_waiting_in_vain_is_a_timeout_that_says_how_many_arrived() -> None:
    with Sink() as sink:
        send(sink)
        sink.wait()
        with pytest.raises(TimeoutError, match=r"1 of 2 messages arrived within 0\.1 s"):
            sink.wait(messages=2, timeout=0.1)


def test_wrong_option_is_an_error_with_the_words_of_the_server() -> None:
    with pytest.raises(SinkError, match="--mode: expected one of accept"):
        Sink(mode="acept").start()
    with pytest.raises(SinkError, match="scenario:2: rule 1: unknown key"):
        Sink(scenario="[[rule]]\nx = 1\n").start()
    with pytest.raises(TypeError, match="leave dashboard out"):
        Sink(dashboard="off")


def test_wrong_request_is_an_error_with_the_words_of_the_server() -> None:
    with Sink() as sink:
        with pytest.raises(SinkError, match=r"^POST /next: phase: expected"):
            sink.next("NOWHERE", "451 no")
        with pytest.raises(SinkError, match=r"^PUT /scenario: Expected"):
            sink.load_scenario("[[rule]\n")
        with pytest.raises(SinkError, match="runs already"):
            sink.start()


def test_sink_that_does_not_run_says_so() -> None:
    sink = Sink()
    sink.stop()
    with pytest.raises(SinkError, match="never started"):
        sink.report()
    with pytest.raises(SinkError, match="does not run"):
        sink.next("RCPT", "451 no")


def test_port_in_use_is_an_error() -> None:
    with Sink() as sink, pytest.raises(OSError, match="in use"):
        Sink(port=sink.port).start()


def test_server_that_is_not_ready_in_time_is_an_error_and_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blackhole.testing.sink.START_TIMEOUT", 0.0)
    sink = Sink()
    with pytest.raises(SinkError, match="not ready after 0 s"):
        sink.start()
    with pytest.raises(SinkError, match="does not run"):
        sink.namespace("one")


def test_other_notifications_than_ready_are_passed_over() -> None:
    with Sink() as sink, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(receiver.getsockname())
            sender.send(b"STATUS=starting")
            sender.send(b"READY=1")
        sink._wait_until_ready(receiver)


def test_server_that_does_not_stop_is_killed_and_one_that_does_not_answer_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("blackhole.testing.sink.STOP_TIMEOUT", 0.1)
    monkeypatch.setattr("blackhole.testing.sink.CONTROL_TIMEOUT", 0.1)
    with Sink() as sink:
        assert sink._process is not None
        master = sink._process.pid
        stopped = [master, *children(master)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(SinkError, match="GET /next"):
            sink.request("GET", "/next")
        for pid in stopped[1:]:  # they end with their master, which is killed
            os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not any(map(alive, stopped)), "the server has ended")


def test_sink_can_start_again() -> None:
    sink = Sink()
    for _ in range(2):
        with sink:
            send(sink)
            assert sink.wait() == 1
        assert "listening on 127.0.0.1" in sink.log


def test_nothing_is_left_after_a_sink() -> None:
    with Sink():
        pass  # the launcher stays
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    with Sink(scenario=REFUSE) as sink:
        assert sink._process
        pid = sink._process.pid
        processes = [pid, *children(pid)]
        assert len(processes) == 3, "master, worker, dashboard"
    assert not any(map(alive, processes))
    del sink
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert not [name for name in os.listdir("/tmp") if "scenario" in name and str(pid) in name]


# The launcher


CRASH = """
import os, signal, sys
from blackhole.testing import Sink
sink = Sink()
sink.start()
print(sink._process.pid, os.getpid(), flush=True)
{end}
"""


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)", "sys.exit(0)", "1 / 0"]
)
def test_server_ends_with_the_process_of_its_test(end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH.format(end=end)],
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    server = int(done.stdout.split()[0])
    wait_for(lambda: not alive(server), "the server has ended")
    assert "ResourceWarning" not in done.stderr


def test_server_ends_when_the_launcher_is_killed_and_the_next_sink_starts_another() -> None:
    launcher = Launcher()
    launcher.prepare()
    assert launcher._process
    first = launcher._process.pid
    output = os.memfd_create("output")
    try:
        process = launcher.start(["--port=0", "--host=127.0.0.1", "--dashboard=off"], {}, 0, [output])
        os.kill(first, signal.SIGKILL)
        assert process.has_ended(60)
        process.close()
        launcher._process.wait()
        again = launcher.start(["--version"], {}, 0, [output])
        assert launcher._process.pid != first
        assert again.has_ended(10)
        again.send_signal(signal.SIGINT)  # no error
        again.close()
    finally:
        os.close(output)
        launcher.close()


def test_launcher_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blackhole.testing.launcher.PROGRAM", "raise SystemExit")
    launcher = Launcher()
    with pytest.raises(SinkError, match="cannot start a server"):
        launcher.start(["--version"], {}, 0, [])


def test_child_of_the_test_process_starts_a_launcher_of_its_own() -> None:
    with Sink() as outer:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                with Sink() as inner:
                    send(inner)
                    code = 0 if inner.wait() == 1 else 2
                from blackhole.testing.launcher import LAUNCHER

                LAUNCHER.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        send(outer)
        assert outer.wait() == 1


def test_sinks_of_several_threads_start_at_once() -> None:
    received: list[int] = []

    def use() -> None:
        with Sink() as sink:
            send(sink)
            received.append(sink.wait())

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert received == [1, 1, 1, 1]


# asyncio


def test_async_sink_has_the_same_methods() -> None:
    async def use() -> None:
        async with AsyncSink() as sink:
            await asyncio.to_thread(send, sink)
            assert await sink.wait() == sink.received == 1
            await sink.next("MAIL", "451 4.3.0 Try again")
            await sink.load_scenario(REFUSE)
            await sink.reset()
            await asyncio.to_thread(send, sink)
            assert await sink.wait() == 1
            assert [one.recipients for one in sink.messages] == [("b@example.com",)]
            assert sink.transactions == sink.messages
            sink.assert_no_violations()
            assert sink.report()["recipients"] == 1

    asyncio.run(use())


def deliver(sink: Sink | AsyncSink, recipient: str, body: bytes = b"Subject: x\r\n\r\nx\r\n") -> None:
    with smtplib.SMTP(sink.host, sink.port, "app.example.com") as client:
        client.sendmail("a@example.com", [recipient], body)


def test_namespaces_of_an_async_sink_have_the_same_methods() -> None:
    async def use() -> None:
        async with AsyncSink(namespace_by="tag") as sink:
            async with sink.namespace("One") as one, sink.namespace("two") as two:
                await one.next("RCPT", "550 5.1.1 No such user")
                await two.load_scenario(REFUSE)
                for _ in range(2):
                    with pytest.raises(smtplib.SMTPRecipientsRefused):
                        await asyncio.to_thread(deliver, sink, two.address())
                with pytest.raises(smtplib.SMTPRecipientsRefused):
                    await asyncio.to_thread(deliver, sink, one.address("bob"))
                await asyncio.to_thread(deliver, sink, one.address("bob", "b.test"))
                assert await one.wait() == one.received == 1
                assert (one.name, two.received, len(two.transactions)) == ("one", 0, 2)
                assert [message.recipients for message in one.messages] == [("bob+ns.one@b.test",)]
                one.assert_no_violations()
                assert one.report()["recipients"] == 1
                with pytest.raises(TimeoutError, match="1 of 2 messages"):
                    await one.wait(2, timeout=0)
                await one.reset()
                assert (one.received, one.transactions) == (0, [])
            with pytest.raises(SinkError, match="no namespace"):
                await asyncio.to_thread(sink.sink.request, "GET", "/namespaces/one")
        with pytest.raises(SinkError, match="does not run"):
            sink.namespace("one")

    asyncio.run(use())


def test_namespaces_of_a_sink_do_not_disturb_each_other() -> None:
    with Sink(namespace_by="tag", workers=2) as sink:
        with sink.namespace("One") as one, sink.namespace("two") as two:
            one.next("RCPT", "550 5.1.1 No such user")
            two.load_scenario(REFUSE)
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                deliver(sink, one.address("bob"))
            deliver(sink, one.address("bob"))
            assert one.wait() == one.received == 1
            with pytest.raises(TimeoutError, match="0 of 1 messages"):
                two.wait(timeout=0)
            assert [message.recipients for message in one.messages] == [("bob+ns.one@example.com",)]
            assert [found.code for found in one.transactions] == [550, 250]
            assert two.transactions == []
            one.assert_no_violations()
            assert (one.report()["recipients"], two.report()["recipients"]) == (1, 0)
            one.reset()
            assert (one.received, one.transactions) == (0, [])
            late = threading.Timer(0.05, deliver, [sink, one.address(), b"Subject: x\r\n\r\n\x80\r\n"])
            late.start()
            assert one.wait(timeout=30) == 1
            late.join(30)
            with pytest.raises(AssertionError, match="8bit-undeclared"):
                one.assert_no_violations()
            two.assert_no_violations()
        with pytest.raises(SinkError, match="no namespace"):
            sink.request("GET", "/namespaces/one")
    with pytest.raises(SinkError, match="does not run"):
        sink.namespace("one")


# The pytest plugin


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example_of_the_document_passes_as_it_is_written(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(EXAMPLES[name])
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = run_pytest(tmp_path, "-q")
    assert done.returncode == 0, done.stdout + done.stderr


def test_document_has_an_example_for_each_way() -> None:
    assert {"test_smtplib.py", "test_django.py", "test_flask.py", "test_asyncio.py"} <= set(EXAMPLES)


OPTIONS_TEST = """
import smtplib, pytest

def name(sink):
    with smtplib.SMTP(sink.host, sink.port) as client:
        return client.ehlo()[1].split()[0]

def test_function(blackhole, blackhole_session):
    assert name(blackhole) == EXPECTED and blackhole.port != blackhole_session.port

def test_session(blackhole_session):
    blackhole_session.reset()
    assert name(blackhole_session) == EXPECTED

@pytest.mark.blackhole(hostname="marker.test")
def test_marker(blackhole):
    assert name(blackhole) == b"marker.test"
"""


NAMESPACE_TEST = """
import smtplib, pytest

@pytest.mark.parametrize("number", [1, 2])
def test_own(blackhole_session, blackhole_namespace, number):
    with smtplib.SMTP(blackhole_session.host, blackhole_session.port, "app.example.com") as client:
        client.sendmail("a@example.com", [blackhole_namespace.address()], "Subject: x")
    assert blackhole_namespace.wait() == 1
"""


def test_fixture_is_a_namespace_of_the_server_of_all_tests(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(NAMESPACE_TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nblackhole_options = namespace_by=tag\n")
    done = run_pytest(tmp_path, "-q")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [((), b"ini.test"), (("--blackhole-option=hostname=line.test", "-n2"), b"line.test")],
)
def test_options_come_from_marker_command_line_and_ini_file(
    options: Sequence[str], expected: bytes, tmp_path: Path
) -> None:
    write_tests(tmp_path, f"EXPECTED = {expected!r}\n{OPTIONS_TEST}")
    done = run_pytest(tmp_path, *options)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_option_without_a_value_is_a_usage_error(tmp_path: Path) -> None:
    write_tests(tmp_path, "def test_it(blackhole):\n    pass\n")
    done = run_pytest(tmp_path, "--blackhole-option=strict")
    assert "'strict': expected NAME=VALUE" in done.stdout + done.stderr


def test_server_ends_with_a_test_run_that_is_killed(tmp_path: Path) -> None:
    write_tests(
        tmp_path,
        "import os, signal\n\ndef test_it(blackhole):\n"
        "    open('pid', 'w').write(str(blackhole._process.pid))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n",
    )
    run_pytest(tmp_path)
    server = int((tmp_path / "pid").read_text())
    wait_for(lambda: not alive(server), "the server has ended")


def test_collecting_tests_starts_no_process(tmp_path: Path) -> None:
    write_tests(tmp_path, "def test_it(blackhole):\n    pass\n")
    done = run_pytest(tmp_path, "--collect-only", "-q")
    assert done.returncode == 0
    assert "test_it" in done.stdout


def test_launcher_collects_garbage_again_after_its_imports() -> None:
    code = (
        "import gc; gc.disable(); from blackhole.testing import launcher_process\n"
        "launcher_process.run(0)\n"  # no process has this parent
        "print(gc.isenabled(), gc.get_freeze_count() > 10000)"
    )
    near, far = socket.socketpair()
    with near, far:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(),
            stdin=far.fileno(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert done.stdout == "True True\n"
