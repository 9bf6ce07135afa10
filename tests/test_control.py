"""Orders over HTTP, while real clients are connected to forked workers."""

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

from blackhole.store.one_shot_rules import MAX_ONE_SHOT_RULES
from blackhole.web.control import MAX_CHECKS
from blackhole.web.control_handlers import MAX_SCENARIO, MAX_UPLOAD
from blackhole.web.order_check import MAX_RULES
from tests.certificates import Certificate
from tests.external_programs import requires
from tests.http_api import Answer, Sink, ask, figures, post, raw
from tests.program import ROOT, children, descriptors, run, title, wait_for
from tests.test_simulator import REFUSE, connected, outcome, refusal


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink("--workers=3") as program:
        program.dashboard()
        yield program


def put(program: Sink, text: str, **headers: str) -> Answer:
    return ask(program.http, "/scenario", "PUT", text, **headers)


def refuse(code: int, more: str = "") -> str:
    return REFUSE.format(code=code) + more


def connect_clients(program: Sink, stack: ExitStack, size: int = 12) -> list[smtplib.SMTP]:
    """Return clients that have sent HELO."""
    clients = [stack.enter_context(smtplib.SMTP("127.0.0.1", program.port, timeout=20)) for _ in range(size)]
    for client in clients:
        client.helo("client.test")
    return clients


def reply_codes(clients: list[smtplib.SMTP]) -> set[int]:
    """Return the reply codes to RCPT, in a transaction that is reset."""
    codes = set()
    for client in clients:
        client.mail("ann@example.com")
        codes.add(client.rcpt("bob@example.com")[0])
        client.rset()
    return codes


# PUT and DELETE


def test_all_workers_and_open_sessions_apply_a_scenario_before_the_response(sink: Sink) -> None:
    with ExitStack() as stack:
        clients = connect_clients(sink, stack)
        opened = [worker["open"] for worker in figures(sink.http)["workers"]]
        assert all(opened), "each worker has some of the clients"
        for code in (451, 452):
            answer = put(sink, refuse(code))
            assert (answer.status, answer.json["name"], answer.json["rules"]) == (200, "PUT /scenario", 1)
            assert time.time() - 20 < answer.json["since"] <= time.time()
            assert reply_codes([*clients, *connect_clients(sink, stack, 3)]) == {code}
        answer = ask(sink.http, "/scenario", "DELETE")
        assert (answer.status, answer.json["name"], answer.json["ordered"]) == (200, "loaded", False)
        assert reply_codes([*clients, *connect_clients(sink, stack, 3)]) == {250}


def test_an_open_transaction_ends_under_the_rules_that_it_began_with(sink: Sink) -> None:
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
        assert reply_codes([client]) == {451}


def test_a_delayed_reply_is_sent_after_the_scenario_changed(sink: Sink) -> None:
    put(sink, '[[rule]]\nphase = "NOOP"\ndelay = "700ms"\n')
    with smtplib.SMTP("127.0.0.1", sink.port, timeout=20) as client:
        client.putcmd("NOOP")
        assert put(sink, refuse(451)).status == 200
        assert client.getreply()[0] == 250
        assert reply_codes([client]) == {451}


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
def test_a_mistake_gives_the_error_message_of_the_configuration_test(
    module: Sink, text: str, said: str, tmp_path: Path
) -> None:
    text = text or refuse(777)
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    tested = run("-t", f"--scenario={path}").stderr
    answer = put(module, text)
    assert answer.status == 400
    line = re.search(r"^\S+ \S+:(\d+): |at line (\d+), ", answer.json["error"])
    number = int(line[1] or line[2]) if line else None
    assert answer.json == {"error": answer.json["error"]} | ({"line": number} if number else {})
    checked = ask(module.http, "/scenario/check", "POST", text)
    error = answer.json["error"].replace("PUT /scenario", "POST /scenario/check")
    assert (checked.status, checked.json) == (400, answer.json | {"error": error})
    assert tested == f"blackhole: {answer.json['error']}\n".replace("PUT /scenario", str(path))
    assert said in tested
    assert ask(module.http, "/scenario").json["name"] == "loaded"


def test_a_scenario_can_be_checked_without_being_put_in_force(module: Sink) -> None:
    before = ask(module.http, "/scenario").json
    answer = ask(module.http, "/scenario/check", "POST", refuse(451) * 2)
    assert (answer.status, answer.json) == (200, {"rules": 2})
    assert ask(module.http, "/scenario").json == before
    too_large = ask(module.http, "/scenario/check", "POST", "#" * (MAX_SCENARIO + 1))
    assert too_large.status == 413


@pytest.fixture(scope="module")
def module() -> Iterator[Sink]:
    """Start one server for all tests that leave no order in force."""
    with Sink("--workers=2") as program:
        program.dashboard()
        yield program


VARIABLE = (
    "[set]\nshare = 0\ncode = 451\n"
    + REFUSE.format(code=450).replace("450 ", "${code} ")
    + '\nchance = "$share"\n'
)


def test_variables_of_a_scenario_are_set_in_the_query(module: Sink) -> None:
    module.dashboard()
    assert put(module, VARIABLE).json["set"] == {"share": 0, "code": 451}
    with smtplib.SMTP("127.0.0.1", module.port, timeout=20) as client:
        assert client.docmd("RCPT", "TO:<b@b>")[0] == 250
    answer = ask(module.http, "/scenario?set=share=1&set=code=452", "PUT", VARIABLE)
    assert (answer.status, answer.json["set"]) == (200, {"share": 1, "code": 452})
    with smtplib.SMTP("127.0.0.1", module.port, timeout=20) as client:
        assert client.docmd("RCPT", "TO:<b@b>")[0] == 452
    assert "share = 1\n" in ask(module.http, "/scenario").json["text"]
    for path, message in {
        "/scenario?set=shore=1": "PUT /scenario: set: shore: unknown variable; there are code, share (did",
        "/scenario?set=share": "PUT /scenario: set: expected NAME=VALUE, not 'share'",
        "/scenario?set=share=2": "chance: expected a probability from 0 to 1, not '2', from $share",
    }.items():
        answer = ask(module.http, path, "PUT", VARIABLE)
        assert answer.status == 400
        assert message in answer.json["error"]
    assert ask(module.http, "/scenario/check?set=share=0.5", "POST", VARIABLE).json == {"rules": 1}
    assert ask(module.http, "/scenario/check?set=share=5", "POST", VARIABLE).status == 400
    answer = ask(module.http, "/scenario?set=deferral=0.5", "POST", '{"name": "profile:gmail"}')
    assert (answer.status, answer.json["set"]["deferral"]) == (200, 0.5)
    assert ask(module.http, "/scenario?set=a=1", "POST", '{"name": "loaded"}').status == 400
    assert ask(module.http, "/scenario", "DELETE").json["set"] == {}


def test_a_scenario_that_is_not_utf8_is_refused(module: Sink) -> None:
    answer = put(module, "# \xff")
    assert (answer.status, answer.json) == (400, {"error": "PUT /scenario: not UTF-8 text"})


@pytest.mark.parametrize("size", [MAX_SCENARIO + 1, 2 * MAX_SCENARIO])
def test_a_scenario_that_is_too_large_is_refused(module: Sink, size: int) -> None:
    answer = put(module, refuse(451) + "#" * (size - len(refuse(451))))
    assert (answer.status, answer.json) == (413, {"error": "A scenario can have at most 65536 octets."})


def test_an_upload_that_is_far_too_large_is_refused_before_it_is_read(module: Sink) -> None:
    head = f"PUT /scenario HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_UPLOAD + 1}\r\n\r\n"
    assert raw(module.http, head.encode()).startswith(b"HTTP/1.1 413 ")


def test_a_scenario_of_the_largest_size_is_applied(module: Sink) -> None:
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
    ("method", "path"),
    [
        *(("PUT", "/scenario"), ("POST", "/scenario"), ("POST", "/scenario/check")),
        *(("DELETE", "/next"), ("POST", "/next")),
    ],
)
def test_a_page_of_another_site_cannot_publish_an_order(
    module: Sink, method: str, path: str, headers: dict[str, str], code: int
) -> None:
    assert ask(module.http, path, method, "{}", **headers).status == code
    assert ask(module.http, "/scenario").json["ordered"] is False


@pytest.mark.parametrize("body", ["", "[]", "7", '{"name": 7}', "[" * 3000, '{"name": "friday"}'])
def test_switching_needs_the_name_of_a_known_scenario(module: Sink, body: str) -> None:
    answer = ask(module.http, "/scenario", "POST", body)
    assert answer.status == 400
    assert "profile:greylist" in answer.json["error"] or "in the body" in answer.json["error"]


# Orders that are costly to read


def quadratic(size: int) -> str:
    """Return TOML that takes tomllib time that grows with the square of its size: 14 s for 34 KB."""
    return "a" + ".a" * (size // 2) + " = 1\n"


NESTED = "[" * 400 + "]" * 400
MANY_RULES = "rule = [" + '{phase="*",reply="450 x"},' * (MAX_RULES + 1) + "]"
HEADER = "[" + "a." * 15000 + "a]\n" + "".join(f"b{number}=1\n" for number in range(3000))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (quadratic(60000), "takes more than 3 s of processor time"),
        (HEADER, "takes more than 3 s of processor time"),
        (f"about = {NESTED}\n", "nested too deeply"),
        (refuse(451, f"name = {NESTED}\n"), "nested too deeply"),
        (refuse(451, f"size = 0x{'f' * 5000}\n"), "a whole number of more than 64 bits"),
        (MANY_RULES, "2001 rules; at most 2000 can be put in force at run time"),
    ],
    ids=["dotted key", "dotted header", "nested arrays", "a nested name", "a long number", "many rules"],
)
def test_a_costly_order_is_refused_while_mail_flows(module: Sink, text: str, said: str) -> None:
    before = {*module.workers(), *module.dashboards()}
    with ThreadPoolExecutor(1) as executor:
        answering = executor.submit(put, module, text)
        while not answering.done():
            assert refusal(module) == "250"
            assert ask(module.http, "/healthz").status == 200
        answer = answering.result()
    assert (answer.status, list(answer.json)) == (400, ["error"])
    # A tomllib that is quick finds the mistake.
    assert said in answer.json["error"] or "unknown key" in answer.json["error"]
    assert {*module.workers(), *module.dashboards()} == before
    assert "Traceback" not in module.output()


def test_an_order_waits_for_the_check_of_another_but_not_of_many(module: Sink) -> None:
    with ThreadPoolExecutor(MAX_CHECKS + 4) as executor:
        answers = [*executor.map(lambda _: put(module, quadratic(7000)), range(MAX_CHECKS + 4))]
    statuses = Counter(answer.status for answer in answers)
    assert statuses[503] and statuses[400] >= MAX_CHECKS, statuses
    assert set(statuses) == {400, 503}


def test_the_process_of_a_check_ends_and_holds_no_connection(module: Sink) -> None:
    with ThreadPoolExecutor(1) as executor:
        answering = executor.submit(put, module, quadratic(60000))
        (pid,) = wait_for(lambda: children(module.dashboards()[0]), "the check runs")
        wait_for(lambda: not [name for name in descriptors(pid) if name.startswith("socket:")], "it has none")
        assert title(pid) == "blackhole: order"
        assert answering.result().status == 400
    assert children(module.dashboards()[0]) == []


# What survives what


def test_a_worker_that_starts_later_applies_the_order(sink: Sink) -> None:
    put(sink, refuse(451))
    add_one_shot_rule(sink, 2, reply="452 4.3.1 Full")
    for worker in sink.workers():
        os.kill(worker, signal.SIGKILL)
    wait_for(
        lambda: figures(sink.http)["connections"]["open"] == 0 and len(sink.workers()) == 3, "new workers run"
    )
    assert [refusal(sink) for _ in range(3)] == ["452", "452", "451"]


def test_a_reload_reads_the_files_again_and_keeps_the_order(tmp_path: Path) -> None:
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
        wait_for(lambda: not before & {*program.workers(), *program.dashboards()}, "the old ones have ended")
        program.dashboard()
        assert refusal(program) == "451"
        assert ask(program.http, "/scenario", "DELETE").json["rules"] == 1
        assert refusal(program) == "452"


def test_an_order_survives_the_dashboard(sink: Sink) -> None:
    put(sink, refuse(451))
    add_one_shot_rule(sink, 1, reply="452 4.3.1 Full")
    pid = sink.dashboard()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: sink.dashboard() != pid, "there is another")
    state = ask(sink.http, "/scenario").json
    assert (state["name"], state["text"], state["next"][0]["left"]) == ("PUT /scenario", refuse(451), 1)
    assert [refusal(sink) for _ in range(2)] == ["452", "451"]


def test_a_stopped_worker_gives_504_and_applies_the_order_later(sink: Sink) -> None:
    with ExitStack() as stack:
        clients = connect_clients(sink, stack)
        (frozen, *_) = sink.workers()
        os.kill(frozen, signal.SIGSTOP)
        try:
            answer = put(sink, refuse(451))
            assert answer.status == 504
            assert answer.json["error"].startswith("The order is in force, but ")
        finally:
            os.kill(frozen, signal.SIGCONT)
        wait_for(lambda: put(sink, refuse(451)).status == 200, "the worker applies the order")
        assert reply_codes(clients) == {451}


# Clock and attempts of an order


WINDOW = 'window = "w"\n[[window]]\nname = "w"\nfor = "2s"\n'


def test_windows_of_a_scenario_start_with_the_order(sink: Sink) -> None:
    wait_for(lambda: time.time() - figures(sink.http)["started"] > 2.1, "windows since the start are over")
    put(sink, refuse(451, WINDOW))
    assert refusal(sink) == "451"
    add_one_shot_rule(sink, 1, phase="NOOP", reply="450 4.3.0 No")
    wait_for(lambda: refusal(sink) == "250", "the window is closed")
    put(sink, refuse(451, WINDOW))
    assert refusal(sink) == "451"


def test_attempts_are_counted_from_the_order_on(sink: Sink) -> None:
    twice = refuse(451, 'attempt = "<= 2"\n')
    for _ in range(2):
        put(sink, twice)
        assert [refusal(sink) for _ in range(2)] == ["451", "451"]
        # A one-shot rule does not reset the attempts.
        add_one_shot_rule(sink, 1, phase="VRFY", reply="550 5.1.1 No")
        assert [refusal(sink) for _ in range(2)] == ["250", "250"]


def test_the_configured_scenario_keeps_its_attempts_during_an_order(tmp_path: Path) -> None:
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


def test_all_workers_show_the_certificate_made_for_an_order(certificate: Certificate) -> None:
    """All show the same one, although they cannot read the key, which only root can."""
    tls = (f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}", "--hostname=mx.test")
    with Sink("--workers=3", *tls) as program:
        program.dashboard()
        for _ in range(3):
            connected(program.port, False, certificate.client).close()
        assert put(program, SHOW).status == 200
        add_one_shot_rule(program, 1, phase="NOOP", reply="450 4.3.0 No")
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


def test_the_certificate_of_an_order_survives_a_reload(certificate: Certificate, tmp_path: Path) -> None:
    tls = (f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}", "--hostname=mx.test")
    path = tmp_path / "scenario.toml"
    path.write_text(SHOW)
    with Sink(f"--scenario={path}", *tls) as program:
        program.dashboard()
        assert put(program, SHOW).status == 200
        path.write_text(refuse(451))
        before = program.workers()
        os.kill(program.pid, signal.SIGHUP)
        wait_for(lambda: not set(before) & set(program.workers()), "the old workers have ended")
        with pytest.raises(ssl.SSLCertVerificationError):
            connected(program.port, False, certificate.client)


def test_a_rule_with_a_certificate_needs_tls(module: Sink) -> None:
    answer = put(module, SHOW)
    wanted = 'scenario: certificate = "wrong-name" needs TLS; give ssl_cert too'
    assert (answer.status, answer.json["error"]) == (400, wanted)


# Switching


def test_configured_files_and_profiles_can_be_switched_to(tmp_path: Path) -> None:
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
        friday.write_text("not read again")

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


def test_a_scenario_can_be_read_as_toml_and_put_back(sink: Sink) -> None:
    post(sink.http, "/scenario", {"name": "profile:full"})
    answer = ask(sink.http, "/scenario", Accept="application/toml")
    assert answer.headers["content-type"] == "application/toml"
    assert put(sink, answer.body.decode()).json["rules"] == ask(sink.http, "/scenario").json["rules"]
    assert ask(sink.http, "/scenario", Accept="application/toml").body == answer.body
    both = ask(sink.http, "/scenario", Accept="application/toml, application/json")
    assert both.headers["content-type"] == "application/json"


def test_stats_contain_the_scenario_in_force(sink: Sink) -> None:
    put(sink, refuse(451))
    add_one_shot_rule(sink, 3, reply="452 4.3.1 Full")
    found = figures(sink.http)["scenario"]
    assert (found["name"], found["next"][0]["left"]) == ("PUT /scenario", 3)


# /next


def add_one_shot_rule(program: Sink, count: int, phase: str = "RCPT", **rule: object) -> Answer:
    """Add a one-shot rule, and check that it was accepted."""
    answer = post(program.http, "/next", {"count": count, "phase": phase, **rule})
    assert answer.status == 200, answer.json
    return answer


def test_a_one_shot_rule_matches_exactly_as_often_as_ordered_over_all_workers(sink: Sink) -> None:
    answer = add_one_shot_rule(sink, 17, reply="451 4.3.0 Next")
    assert answer.json["next"] == [{"count": 17, "left": 17, "phase": "RCPT", "reply": "451 4.3.0 Next"}]
    assert answer.json["name"] == "loaded"

    def talk(client: smtplib.SMTP) -> Counter[int]:
        return Counter(code for _ in range(10) for code in reply_codes([client]))

    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        heard = sum(pool.map(talk, connect_clients(sink, stack, 8)), Counter())
    assert heard == {451: 17, 250: 63}
    assert ask(sink.http, "/next").json == []


def test_one_shot_rules_match_in_order_and_before_all_others(sink: Sink) -> None:
    put(sink, refuse(450))
    add_one_shot_rule(sink, 2, reply="451 4.3.0 One")
    add_one_shot_rule(sink, 1, reply="452 4.3.0 Two", recipient="bob@*")
    left = add_one_shot_rule(sink, 1, phase=".", reply="554 5.6.0 Three").json["next"]
    assert [one["left"] for one in left] == [2, 1, 1]
    assert outcome(sink.port, "ann@example.com", "eve@example.com")[:3] == "451"
    assert [one["left"] for one in ask(sink.http, "/next").json] == [1, 1, 1]
    assert refusal(sink) == "451"
    assert outcome(sink.port, "ann@example.com", "eve@example.com")[:3] == "450"
    assert [refusal(sink) for _ in range(2)] == ["452", "450"]
    assert [one["phase"] for one in ask(sink.http, "/next").json] == ["."]
    answer = ask(sink.http, "/next", "DELETE")
    assert (answer.status, answer.json["next"], answer.json["name"]) == (200, [], "PUT /scenario")


def test_a_one_shot_rule_can_have_a_fault_or_a_delay(sink: Sink) -> None:
    add_one_shot_rule(sink, 1, then="close")
    assert outcome(sink.port, "ann@example.com", "bob@example.com") == "gone"
    add_one_shot_rule(sink, 1, delay=0.4)
    began = time.monotonic()
    assert refusal(sink) == "250"
    assert time.monotonic() - began >= 0.4


def test_a_one_shot_rule_can_defer_one_message(sink: Sink) -> None:
    add_one_shot_rule(sink, 1, phase=".", reply="451 4.3.0 Once")
    codes = []
    with smtplib.SMTP("127.0.0.1", sink.port, timeout=20) as client:
        client.helo("client.test")
        for _ in range(2):
            client.mail("ann@example.com")
            client.rcpt("bob@example.com")
            codes.append(client.data("Subject: x\r\n\r\nx\r\n")[0])
    assert codes == [451, 250]


def test_a_used_one_shot_rule_frees_its_place(sink: Sink) -> None:
    """Places are free again, and sessions as fast as before."""
    for number in range(MAX_ONE_SHOT_RULES + 3):
        add_one_shot_rule(sink, 1, reply=f"451 4.3.0 {number}")
        assert outcome(sink.port, "ann@example.com", "bob@example.com") == f"451 4.3.0 {number}"


def test_the_number_of_one_shot_rules_is_limited(sink: Sink) -> None:
    for _ in range(MAX_ONE_SHOT_RULES):
        add_one_shot_rule(sink, 1, reply="451 4.3.0 Next")
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
def test_a_mistake_in_a_one_shot_rule_is_refused(module: Sink, body: str, error: str) -> None:
    answer = ask(module.http, "/next", "POST", body)
    assert answer.status == 400
    assert answer.json["error"].startswith(error)
    assert ask(module.http, "/next").json == []
    assert "Traceback" not in module.output()


# Load, logs, documents


def test_orders_under_load_break_no_connection(sink: Sink) -> None:
    """Each reply belongs to one of the orders."""
    with ExitStack() as stack, ThreadPoolExecutor(6) as pool:
        clients = connect_clients(sink, stack, 5)
        stop = time.monotonic() + 3

        def talk(client: smtplib.SMTP) -> set[int]:
            codes = set()
            while time.monotonic() < stop:
                codes |= reply_codes([client])
            return codes

        talking = [pool.submit(talk, client) for client in clients]
        while time.monotonic() < stop:
            assert put(sink, refuse(451)).status == 200
            assert ask(sink.http, "/scenario", "DELETE").status == 200
        assert set().union(*(one.result(20) for one in talking)) == {250, 451}
    assert "fault" not in sink.output()


def test_without_a_dashboard_no_order_can_be_published() -> None:
    with Sink("--dashboard=off") as program:
        assert refusal(program) == "250"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", program.http), 5)


def test_orders_are_logged(sink: Sink) -> None:
    put(sink, refuse(451))
    add_one_shot_rule(sink, 2, reply="452 4.3.1 Full")
    log = sink.output()
    assert "order 1 over HTTP: scenario PUT /scenario, rules 1, one-shot rules 0\n" in log
    assert "order 2 over HTTP: scenario PUT /scenario, rules 1, one-shot rules 1\n" in log


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


@requires("curl")
def test_the_script_in_the_documents_works(sink: Sink, tmp_path: Path) -> None:
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


def test_clients_with_limits_get_the_rules_of_an_order_too() -> None:
    """Clients that are not trusted have another engine."""
    with Sink("--public", "--trusted=192.0.2.0/24") as program, ExitStack() as stack:
        program.dashboard()
        clients = connect_clients(program, stack, 4)
        put(program, refuse(451))
        assert reply_codes([*clients, *connect_clients(program, stack, 1)]) == {451}
        ask(program.http, "/scenario", "DELETE")
        assert reply_codes([*clients, *connect_clients(program, stack, 1)]) == {250}


def test_order_under_way_at_a_reload_is_answered() -> None:
    """The old dashboard waits for the worker that has yet to apply it."""
    with Sink("--workers=1") as sink, ThreadPoolExecutor(1) as pool:
        old = sink.dashboard()
        (worker,) = sink.workers()
        os.kill(worker, signal.SIGSTOP)
        asked = pool.submit(post, sink.http, "/next", {"phase": "MAIL", "reply": "451 4.3.0 Later"})
        wait_for(lambda: "order 1 over HTTP" in sink.output(), "the order is in force")
        sink.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reloaded: dashboard" in sink.output(), "the reload")
        assert not asked.done()
        os.kill(worker, signal.SIGCONT)
        assert asked.result().status == 200
        wait_for(lambda: old not in sink.dashboards(), "the old dashboard has ended")
