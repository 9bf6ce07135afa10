"""The server told over HTTP how to behave, while real clients talk to its real, forked workers."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import Certificate
from program import ROOT, run, wait_for
from test_simulator import REFUSE, connected, outcome, refusal
from test_web import Answer, Sink, ask, figures, post, raw

from blackhole.store.control import MAX_ONE_SHOT_RULES
from blackhole.web.control_handlers import MAX_SCENARIO, MAX_UPLOAD


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink("--workers=3") as program:
        program.dashboard()
        yield program


def put(program: Sink, text: str, **headers: str) -> Answer:
    return ask(program.http, "/scenario", "PUT", text, **headers)


def refuse(code: int, more: str = "") -> str:
    return REFUSE.format(code=code) + more


def crowd(program: Sink, stack: ExitStack, size: int = 12) -> list[smtplib.SMTP]:
    """Clients that are connected, and greeted."""
    clients = [stack.enter_context(smtplib.SMTP("127.0.0.1", program.port, timeout=20)) for _ in range(size)]
    for client in clients:
        client.helo("client.test")
    return clients


def answers(clients: list[smtplib.SMTP]) -> set[int]:
    """What they hear at RCPT, in a transaction that is undone."""
    codes = set()
    for client in clients:
        client.mail("ann@example.com")
        codes.add(client.rcpt("bob@example.com")[0])
        client.rset()
    return codes


# PUT and DELETE


def test_once_it_is_answered_every_worker_obeys_and_every_open_session_too(sink: Sink) -> None:
    with ExitStack() as stack:
        clients = crowd(sink, stack)
        opened = [worker["open"] for worker in figures(sink.http)["workers"]]
        assert all(opened), "each worker has some of them"
        for code in (451, 452):
            answer = put(sink, refuse(code))
            assert (answer.status, answer.json["name"], answer.json["rules"]) == (200, "PUT /scenario", 1)
            assert time.time() - 20 < answer.json["since"] <= time.time()
            assert answers([*clients, *crowd(sink, stack, 3)]) == {code}
        answer = ask(sink.http, "/scenario", "DELETE")
        assert (answer.status, answer.json["name"], answer.json["ordered"]) == (200, "loaded", False)
        assert answers([*clients, *crowd(sink, stack, 3)]) == {250}


def test_a_transaction_under_way_ends_under_the_rules_it_began_with(sink: Sink) -> None:
    with smtplib.SMTP("127.0.0.1", sink.port, timeout=20) as client:
        client.helo("client.test")
        client.mail("ann@example.com")
        client.rcpt("bob@example.com")
        client.docmd("DATA")
        client.send(b"Subject: half")
        assert put(sink, '[[rule]]\nphase = [".", "RCPT"]\nreply = "451 4.3.0 Later"\n').status == 200
        assert outcome(sink.port, "ann@example.com", "bob@example.com")[:3] == "451"
        client.send(b" a message\r\n.\r\n")
        assert client.getreply()[0] == 250
        assert answers([client]) == {451}


def test_what_waits_for_its_reply_gets_it(sink: Sink) -> None:
    put(sink, '[[rule]]\nphase = "NOOP"\ndelay = "700ms"\n')
    with smtplib.SMTP("127.0.0.1", sink.port, timeout=20) as client:
        client.putcmd("NOOP")
        assert put(sink, refuse(451)).status == 200
        assert client.getreply()[0] == 250
        assert answers([client]) == {451}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a reply"),
        ('[[rule]\nphase = "RCPT"', ""),
        (refuse(451, "chance = 2\n"), ":4: rule 1: chance: expected a probability"),
        (refuse(451, 'window = "w"\n'), ':4: rule 1: window: unknown window "w"'),
        ("seed = 1\n", "no [[rule]] in the file"),
        (f"seed = {'9' * 5000}\n", "limit"),
        (f"seed = {'[' * 5000}\n", "nested too deeply"),
    ],
)
def test_a_mistake_is_the_line_of_the_test(module: Sink, text: str, said: str, tmp_path: Path) -> None:
    text = text or refuse(777)
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    tested = run("-t", f"--scenario={path}").stderr
    answer = put(module, text)
    assert (answer.status, list(answer.json)) == (400, ["error"])
    assert tested == f"blackhole: {answer.json['error']}\n".replace("PUT /scenario", str(path))
    assert said in tested
    assert ask(module.http, "/scenario").json["name"] == "loaded"


@pytest.fixture(scope="module")
def module() -> Iterator[Sink]:
    """One for all tests that leave no order behind."""
    with Sink("--workers=2") as program:
        program.dashboard()
        yield program


def test_what_is_no_text_is_a_mistake(module: Sink) -> None:
    answer = put(module, "# \xff")
    assert (answer.status, answer.json) == (400, {"error": "PUT /scenario: not UTF-8 text"})


@pytest.mark.parametrize("size", [MAX_SCENARIO + 1, 2 * MAX_SCENARIO])
def test_one_that_is_too_large_is_refused(module: Sink, size: int) -> None:
    answer = put(module, refuse(451) + "#" * (size - len(refuse(451))))
    assert (answer.status, answer.json) == (413, {"error": "A scenario can have at most 65536 octets."})


def test_one_that_is_far_too_large_is_not_waited_for(module: Sink) -> None:
    head = f"PUT /scenario HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_UPLOAD + 1}\r\n\r\n"
    assert raw(module.http, head.encode()).startswith(b"HTTP/1.1 413 ")


def test_one_of_the_largest_size_is_obeyed(module: Sink) -> None:
    text = refuse(451) + "#" + '"' * (MAX_SCENARIO - len(refuse(451)) - 1)
    assert put(module, text).status == 200
    assert ask(module.http, "/scenario").json["text"] == text
    assert put(module, "").json["name"] == "loaded"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/scenario"), ("POST", "/scenario"), ("DELETE", "/next"), ("POST", "/next")]
)
def test_another_page_cannot_order_anything(
    module: Sink, method: str, path: str, headers: dict[str, str], code: int
) -> None:
    assert ask(module.http, path, method, "{}", **headers).status == code
    assert ask(module.http, "/scenario").json["ordered"] is False


@pytest.mark.parametrize("body", ["", "[]", "7", '{"name": 7}', "[" * 3000, '{"name": "friday"}'])
def test_a_switch_needs_a_name_that_there_is(module: Sink, body: str) -> None:
    answer = ask(module.http, "/scenario", "POST", body)
    assert answer.status == 400
    assert "profile:greylist" in answer.json["error"] or "in the body" in answer.json["error"]


# What outlives what


def test_a_worker_that_comes_later_obeys_too(sink: Sink) -> None:
    put(sink, refuse(451))
    expect(sink, 2, reply="452 4.3.1 Full")
    for worker in sink.workers():
        os.kill(worker, signal.SIGKILL)
    wait_for(lambda: figures(sink.http)["connections"]["open"] == 0 and len(sink.workers()) == 3, "new ones")
    assert [refusal(sink) for _ in range(3)] == ["452", "452", "451"]


def test_a_reload_reads_the_files_again_and_leaves_orders_in_force(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(refuse(450))
    with Sink(f"--scenario={path}") as program:
        program.dashboard()
        assert refusal(program) == "450"
        put(program, refuse(451))
        path.write_text(refuse(452))
        before = {*program.workers(), *program.dashboards()}
        os.kill(program.pid, signal.SIGHUP)
        wait_for(lambda: "reloaded" in program.output(), "it has reloaded")
        wait_for(lambda: not before & {*program.workers(), *program.dashboards()}, "the old ones are gone")
        program.dashboard()
        assert refusal(program) == "451"
        assert ask(program.http, "/scenario", "DELETE").json["rules"] == 1
        assert refusal(program) == "452"


def test_it_outlives_a_dashboard(sink: Sink) -> None:
    put(sink, refuse(451))
    expect(sink, 1, reply="452 4.3.1 Full")
    pid = sink.dashboard()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: sink.dashboard() != pid, "there is another")
    state = ask(sink.http, "/scenario").json
    assert (state["name"], state["text"], state["next"][0]["left"]) == ("PUT /scenario", refuse(451), 1)
    assert [refusal(sink) for _ in range(2)] == ["452", "451"]


def test_a_worker_that_is_stopped_is_told_of_and_obeys_when_it_goes_on(sink: Sink) -> None:
    with ExitStack() as stack:
        clients = crowd(sink, stack)
        (frozen, *_) = sink.workers()
        os.kill(frozen, signal.SIGSTOP)
        try:
            answer = put(sink, refuse(451))
            assert answer.status == 504
            assert answer.json["error"].startswith("The order is in force, but ")
        finally:
            os.kill(frozen, signal.SIGCONT)
        wait_for(lambda: put(sink, refuse(451)).status == 200, "it obeys")
        assert answers(clients) == {451}


# Time and memory begin with an order


WINDOW = 'window = "w"\n[[window]]\nname = "w"\nfor = "2s"\n'


def test_the_clock_begins_with_the_order(sink: Sink) -> None:
    wait_for(lambda: time.time() - figures(sink.http)["started"] > 2.1, "the window would be over")
    put(sink, refuse(451, WINDOW))
    assert refusal(sink) == "451"
    expect(sink, 1, phase="NOOP", reply="450 4.3.0 No")
    wait_for(lambda: refusal(sink) == "250", "the window is closed")
    put(sink, refuse(451, WINDOW))
    assert refusal(sink) == "451"


def test_the_memory_begins_with_the_order(sink: Sink) -> None:
    twice = refuse(451, 'attempt = "<= 2"\n')
    for _ in range(2):
        put(sink, twice)
        assert [refusal(sink) for _ in range(2)] == ["451", "451"]
        # One more order for the future does not make it forget.
        expect(sink, 1, phase="VRFY", reply="550 5.1.1 No")
        assert [refusal(sink) for _ in range(2)] == ["250", "250"]


def test_what_was_loaded_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(refuse(450, "attempt = 1\n"))
    with Sink(f"--scenario={path}") as program:
        program.dashboard()
        assert refusal(program) == "450"
        put(program, refuse(451))
        assert refusal(program) == "451"
        ask(program.http, "/scenario", "DELETE")
        assert refusal(program) == "250"


# Certificates

SHOW = '[[rule]]\nphase = "STARTTLS"\ncertificate = "wrong-name"\n'


def test_a_certificate_is_made_for_an_order(certificate: Certificate) -> None:
    """All workers show the same one, and they could not read a file of root's for it."""
    tls = (f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}", "--hostname=mx.test")
    with Sink("--workers=3", *tls) as program:
        program.dashboard()
        for _ in range(3):
            connected(program.port, False, certificate.client).close()
        assert put(program, SHOW).status == 200
        expect(program, 1, phase="NOOP", reply="450 4.3.0 No")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        shown = set()
        for _ in range(8):
            with connected(program.port, False, context) as client:
                shown.add(client.getpeercert(binary_form=True))
        assert len(shown) == 1
        with pytest.raises(ssl.SSLCertVerificationError):
            connected(program.port, False, certificate.client)
        ask(program.http, "/scenario", "DELETE")
        connected(program.port, False, certificate.client).close()


def test_a_certificate_is_there_when_a_reload_loads_none(certificate: Certificate, tmp_path: Path) -> None:
    tls = (f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}", "--hostname=mx.test")
    path = tmp_path / "scenario.toml"
    path.write_text(SHOW)
    with Sink(f"--scenario={path}", *tls) as program:
        program.dashboard()
        assert put(program, SHOW).status == 200
        path.write_text(refuse(451))
        before = program.workers()
        os.kill(program.pid, signal.SIGHUP)
        wait_for(lambda: not set(before) & set(program.workers()), "the old workers are gone")
        with pytest.raises(ssl.SSLCertVerificationError):
            connected(program.port, False, certificate.client)


def test_a_certificate_needs_tls(module: Sink) -> None:
    answer = put(module, SHOW)
    wanted = 'scenario: certificate = "wrong-name" needs TLS; give ssl_cert too'
    assert (answer.status, answer.json["error"]) == (400, wanted)


# What there is to switch to


def test_loaded_ones_are_switched(tmp_path: Path) -> None:
    friday, monday = tmp_path / "friday.toml", tmp_path / "monday.toml"
    friday.write_text(f'about = "The worst."\n{refuse(450)}recipient = "*@friday.example"\n')
    monday.write_text(refuse(451))
    with Sink(f"--scenario={friday}", f"--scenario={monday}") as program:
        program.dashboard()
        state = ask(program.http, "/scenario").json
        assert (state["name"], state["rules"]) == ("loaded", 2)
        assert state["text"] == f"# {friday}\n{friday.read_text()}\n# {monday}\n{monday.read_text()}"
        choices = {choice["name"]: choice for choice in state["choices"]}
        assert choices["loaded"] == {"name": "loaded", "about": "friday.toml, monday.toml", "rules": 2}
        assert choices[str(friday)] == {"name": str(friday), "about": "The worst.", "rules": 1}
        assert choices["profile:greylist"]["rules"] == 2
        friday.write_text("nobody reads it again")

        def switch(name: str) -> str:
            answer = post(program.http, "/scenario", {"name": name})
            assert answer.status == 200
            return str(answer.json["name"])

        assert refusal(program) == "451"
        assert switch("friday.toml") == str(friday)
        assert refusal(program) == "250"
        assert switch(str(monday)) == str(monday)
        assert refusal(program) == "451"
        assert switch("profile:greylist") == "profile:greylist"
        assert "Greylisted" in outcome(program.port, "ann@example.com", "bob@example.com")
        assert switch("loaded") == "loaded"
        assert outcome(program.port, "ann@example.com", "bob@friday.example")[:3] == "450"


def test_it_can_be_had_as_toml_and_put_back(sink: Sink) -> None:
    post(sink.http, "/scenario", {"name": "profile:full"})
    answer = ask(sink.http, "/scenario", Accept="application/toml")
    assert answer.headers["content-type"] == "application/toml"
    assert put(sink, answer.body.decode()).json["rules"] == ask(sink.http, "/scenario").json["rules"]
    assert ask(sink.http, "/scenario", Accept="application/toml").body == answer.body
    both = ask(sink.http, "/scenario", Accept="application/toml, application/json")
    assert both.headers["content-type"] == "application/json"


def test_the_figures_tell_of_it(sink: Sink) -> None:
    put(sink, refuse(451))
    expect(sink, 3, reply="452 4.3.1 Full")
    found = figures(sink.http)["scenario"]
    assert (found["name"], found["next"][0]["left"]) == ("PUT /scenario", 3)


# /next


def expect(program: Sink, count: int, phase: str = "RCPT", **rule: object) -> Answer:
    """Order that a rule speaks the next so many times."""
    answer = post(program.http, "/next", {"count": count, "phase": phase, **rule})
    assert answer.status == 200, answer.json
    return answer


def test_it_is_said_exactly_so_many_times_over_all_workers(sink: Sink) -> None:
    answer = expect(sink, 17, reply="451 4.3.0 Next")
    assert answer.json["next"] == [{"count": 17, "left": 17, "phase": "RCPT", "reply": "451 4.3.0 Next"}]
    assert answer.json["name"] == "loaded"

    def talk(client: smtplib.SMTP) -> Counter[int]:
        return Counter(code for _ in range(10) for code in answers([client]))

    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        heard = sum(pool.map(talk, crowd(sink, stack, 8)), Counter())
    assert heard == {451: 17, 250: 63}
    assert ask(sink.http, "/next").json == []


def test_they_speak_in_their_order_and_ahead_of_every_rule(sink: Sink) -> None:
    put(sink, refuse(450))
    expect(sink, 2, reply="451 4.3.0 One")
    expect(sink, 1, reply="452 4.3.0 Two", recipient="bob@*")
    left = expect(sink, 1, phase=".", reply="554 5.6.0 Three").json["next"]
    assert [one["left"] for one in left] == [2, 1, 1]
    assert outcome(sink.port, "ann@example.com", "eve@example.com")[:3] == "451"
    assert [one["left"] for one in ask(sink.http, "/next").json] == [1, 1, 1]
    assert refusal(sink) == "451"
    assert outcome(sink.port, "ann@example.com", "eve@example.com")[:3] == "450"
    assert [refusal(sink) for _ in range(2)] == ["452", "450"]
    assert [one["phase"] for one in ask(sink.http, "/next").json] == ["."]
    answer = ask(sink.http, "/next", "DELETE")
    assert (answer.status, answer.json["next"], answer.json["name"]) == (200, [], "PUT /scenario")


def test_faults_and_delays_can_come_next(sink: Sink) -> None:
    expect(sink, 1, then="close")
    assert outcome(sink.port, "ann@example.com", "bob@example.com") == "gone"
    expect(sink, 1, delay=0.4)
    began = time.monotonic()
    assert refusal(sink) == "250"
    assert time.monotonic() - began >= 0.4


def test_a_message_can_be_deferred_once(sink: Sink) -> None:
    expect(sink, 1, phase=".", reply="451 4.3.0 Once")
    codes = []
    with smtplib.SMTP("127.0.0.1", sink.port, timeout=20) as client:
        client.helo("client.test")
        for _ in range(2):
            client.mail("ann@example.com")
            client.rcpt("bob@example.com")
            codes.append(client.data("Subject: x\r\n\r\nx\r\n")[0])
    assert codes == [451, 250]


def test_what_has_been_said_leaves_no_rule_behind(sink: Sink) -> None:
    """So that places are free again, and sessions as fast as before."""
    for number in range(MAX_ONE_SHOT_RULES + 3):
        expect(sink, 1, reply=f"451 4.3.0 {number}")
        assert outcome(sink.port, "ann@example.com", "bob@example.com") == f"451 4.3.0 {number}"


def test_there_may_be_only_so_many(sink: Sink) -> None:
    for _ in range(MAX_ONE_SHOT_RULES):
        expect(sink, 1, reply="451 4.3.0 Next")
    answer = post(sink.http, "/next", {"phase": "RCPT", "reply": "451 4.3.0 Next"})
    assert (answer.status, answer.json["error"]) == (
        400, "POST /next: 16 rules are waiting already; DELETE /next removes them",
    )  # fmt: skip
    assert len(ask(sink.http, "/next").json) == MAX_ONE_SHOT_RULES
    assert ask(sink.http, "/next", "DELETE").status == 200
    assert refusal(sink) == "250"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("{", "Expected a JSON object in the body."),
        ("[]", "Expected a JSON object in the body."),
        ("{}", "POST /next: phase: missing; expected one of CONNECT"),
        ('{"phase": "RCPT"}', "POST /next: reply: missing; a rule needs one of"),
        ('{"phase": "RCPX", "reply": "451 x"}', "POST /next: phase: expected one of CONNECT"),
        ('{"phase": "RCPT", "reply": null}', "POST /next: reply: expected a reply with its code"),
        (
            '{"phase": "RCPT", "reply": "451 x", "chanse": 1}',
            'POST /next: unknown key "chanse" (did you mean chance?)',
        ),
        (
            '{"phase": "RCPT", "reply": "451 x", "chance": 0.5}',
            "POST /next: chance: not in a single rule",
        ),
        (
            '{"phase": "RCPT", "reply": "451 x", "window": "w"}',
            "POST /next: window: not in a single rule",
        ),
        ('{"phase": "RCPT", "greylist": true}', "POST /next: greylist: not in a single rule; put it into"),
        ('{"count": 0, "phase": "RCPT", "reply": "451 x"}', "POST /next: count: expected a whole number"),
        ('{"count": true, "phase": "RCPT", "reply": "451 x"}', "POST /next: count: expected a whole"),
        ('{"count": 1.5, "phase": "RCPT", "reply": "451 x"}', "POST /next: count: expected a whole"),
        ('{"phase": "STARTTLS", "certificate": "expired"}', 'scenario: certificate = "expired" needs TLS'),
    ],
)
def test_a_mistake_in_what_comes_next(module: Sink, body: str, error: str) -> None:
    answer = ask(module.http, "/next", "POST", body)
    assert answer.status == 400
    assert answer.json["error"].startswith(error)
    assert ask(module.http, "/next").json == []
    assert "Traceback" not in module.output()


# What it must not do


def test_mail_goes_on_while_orders_come(sink: Sink) -> None:
    """A hundred orders under load: no connection breaks, and each reply is of one order or another."""
    with ExitStack() as stack, ThreadPoolExecutor(6) as pool:
        clients = crowd(sink, stack, 5)
        stop = time.monotonic() + 3

        def talk(client: smtplib.SMTP) -> set[int]:
            codes = set()
            while time.monotonic() < stop:
                codes |= answers([client])
            return codes

        talking = [pool.submit(talk, client) for client in clients]
        while time.monotonic() < stop:
            assert put(sink, refuse(451)).status == 200
            assert ask(sink.http, "/scenario", "DELETE").status == 200
        assert set().union(*(one.result(20) for one in talking)) == {250, 451}
    assert "fault" not in sink.output()


def test_without_a_dashboard_there_is_nobody_to_order_anything() -> None:
    with Sink("--dashboard=off") as program:
        assert refusal(program) == "250"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", program.http), 5)


def test_orders_are_logged(sink: Sink) -> None:
    put(sink, refuse(451))
    expect(sink, 2, reply="452 4.3.1 Full")
    log = sink.output()
    assert "order 2 over HTTP: scenario PUT /scenario, rules 1, one-shot rules 0\n" in log
    assert "order 3 over HTTP: scenario PUT /scenario, rules 1, one-shot rules 1\n" in log


SENDER = """\
#!{python}
import smtplib, sys, time
for attempt in range(3):
    try:
        with smtplib.SMTP("127.0.0.1", {port}, timeout=20) as client:
            client.sendmail("a@example.com", ["b@example.com"], "Subject: x\\r\\n\\r\\nx\\r\\n")
        sys.exit(0)
    except smtplib.SMTPException:
        time.sleep(0.01)
sys.exit(1)
"""


def test_the_script_of_the_page_does_what_it_says(sink: Sink, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "dashboard.md").read_text()
    shown = re.search(
        r"\n((?: {4}.*\n|\n)*? {4}\./send-a-message(?: {4}.*\n| .*\n|\n)*)\n\[Control API\]", page
    )
    assert shown
    script = textwrap.dedent(shown[1]).replace(":8025", f":{sink.http}")
    (tmp_path / "outage.toml").write_text(refuse(451))
    sender = tmp_path / "send-a-message"
    sender.write_text(SENDER.format(python=sys.executable, port=sink.port))
    sender.chmod(0o755)
    done = subprocess.run(
        ["sh", "-e", "-x", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("+ ./send-a-message") == 2
    replies = figures(sink.http)["replies"]["RCPT"]
    assert replies == {"250": 1, "451": 5}


def test_who_is_judged_obeys_too() -> None:
    """Clients that are not trusted have an engine of their own."""
    with Sink("--public", "--trusted=192.0.2.0/24") as program, ExitStack() as stack:
        program.dashboard()
        clients = crowd(program, stack, 4)
        put(program, refuse(451))
        assert answers([*clients, *crowd(program, stack, 1)]) == {451}
        ask(program.http, "/scenario", "DELETE")
        assert answers([*clients, *crowd(program, stack, 1)]) == {250}
