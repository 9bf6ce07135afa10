"""One program whose listeners greet as several servers, with scenarios of their own."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http_api import Sink, ask, post
from tests.program import Program, free_port, run

RULE = '[[rule]]\nphase = "RCPT"\nreply = "{} 4.7.1 From {{client}}"\n'

THROTTLE = """
[[rule]]
phase = "MAIL"
throttle = { messages = 1, per = "1h", by = "client" }
reply = "450 4.7.1 Too fast"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenarios")
    for code in (450, 451):
        (folder / f"{code}.toml").write_text(RULE.format(code))
    (folder / "users").write_text("ann:secret\n")
    (folder / "users").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def ports() -> list[int]:
    return [free_port() for _ in range(3)]


@pytest.fixture(scope="module")
def sink(folder: Path, ports: list[int]) -> Iterator[Sink]:
    """Start a server with a scenario, two listeners with their own, and one that asks for AUTH."""
    listeners = (
        f"127.0.0.1:{ports[0]},hostname=mx2.test,scenario={folder}/451.toml,strict",
        f"127.0.0.1:{ports[1]},hostname=mx3.test,scenario=profile:outage,mode=bounce",
        f"127.0.0.1:{ports[2]},auth={folder}/users,auth_plaintext,auth_required,message_size_limit=1000",
    )
    first = ("--host=127.0.0.1", f"--port={free_port()}", f"--scenario={folder}/450.toml")
    with Sink(*first, *(f"--listen={one}" for one in listeners)) as program:
        program.dashboard()
        yield program


def rcpt(port: int) -> int:
    """Return the code of the reply to RCPT."""
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.ehlo("client.test")
        client.mail("ann@example.com")
        return client.rcpt("bob@example.com")[0]


def test_each_listener_greets_by_its_own_name_and_keeps_its_own_order(sink: Sink, ports: list[int]) -> None:
    with smtplib.SMTP(timeout=20) as client:
        assert client.connect("127.0.0.1", ports[0])[1].startswith(b"mx2.test ESMTP")
        assert client.mail("ann@example.com")[0] == 503  # strict: without EHLO
        assert client.ehlo("c.test")[1].splitlines()[0] == b"mx2.test"
    with smtplib.SMTP(timeout=20) as client:
        client.connect("127.0.0.1", sink.port)
        assert client.mail("ann@example.com")[0] == 250


def test_a_listener_with_auth_of_its_own_asks_for_it(sink: Sink, ports: list[int]) -> None:
    with smtplib.SMTP("127.0.0.1", ports[2], timeout=20) as client:
        client.ehlo("c.test")
        assert client.esmtp_features["size"] == "1000"
        assert client.mail("ann@example.com")[0] == 530
        assert client.login("ann", "secret")[0] == 235
        assert client.mail("ann@example.com")[0] == 250
    with smtplib.SMTP("127.0.0.1", sink.port, timeout=20) as client:
        client.ehlo("c.test")
        assert not client.has_extn("auth")


def test_a_scenario_of_a_listener_takes_the_place_of_that_of_the_server(sink: Sink, ports: list[int]) -> None:
    assert (rcpt(sink.port), rcpt(ports[0]), rcpt(ports[1])) == (450, 451, 250)


def test_an_order_replaces_the_scenarios_of_all_listeners_until_it_is_withdrawn(
    sink: Sink, ports: list[int]
) -> None:
    assert ask(sink.http, "/scenario", "PUT", RULE.format(452)).status == 200
    assert [rcpt(port) for port in (sink.port, *ports[:2])] == [452, 452, 452]
    limited = RULE.format(452) + f"listener = {ports[0]}\n"
    assert ask(sink.http, "/scenario", "PUT", limited).status == 200
    assert [rcpt(port) for port in (sink.port, *ports[:2])] == [250, 452, 250]
    assert ask(sink.http, "/scenario", "DELETE").status in (200, 204)
    assert [rcpt(port) for port in (sink.port, *ports[:2])] == [450, 451, 250]


def test_a_one_shot_rule_comes_before_the_scenario_of_a_listener(sink: Sink, ports: list[int]) -> None:
    rule = {"phase": "RCPT", "reply": "552 5.2.2 Full", "count": 1, "listener": ports[0]}
    assert post(sink.http, "/next", rule).status in (200, 201)
    assert [rcpt(port) for port in (sink.port, ports[0], ports[0])] == [450, 552, 451]


def test_limits_of_listeners_with_the_same_scenario_are_apart(tmp_path: Path) -> None:
    (tmp_path / "slow.toml").write_text(THROTTLE)
    ports = [free_port(), free_port()]
    listen = [f"--listen=127.0.0.1:{port},scenario={tmp_path}/slow.toml" for port in ports]
    with Program(*listen):
        codes = []
        for port in (*ports, *ports):
            with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
                client.ehlo("c.test")
                codes.append(client.mail("ann@example.com")[0])
    assert codes == [250, 250, 450, 450]


def test_a_mistake_in_the_scenario_of_a_listener_is_named_with_the_listener(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[[rule]]\nphase = 'RCPT'\nreplay = '450 4.2.1 Later'\n")
    done = run(f"--listen=127.0.0.1:26,scenario={tmp_path}/bad.toml", "--test-config")
    assert done.returncode == 78
    assert f"blackhole: listener 127.0.0.1:26: {tmp_path}/bad.toml:3: rule 1: " in done.stderr


def test_explain_asks_the_scenario_of_the_listener(folder: Path) -> None:
    options = [
        f"--scenario={folder}/450.toml",
        f"--listen=127.0.0.1:26,scenario={folder}/451.toml",
        "--port=25",
    ]
    for listener, code in (("0.0.0.0:25", "450"), ("127.0.0.1:26", "451")):
        done = run(*options, "explain", "--rcpt=bob@example.com", f"--listener={listener}")
        assert f"{code} 4.7.1" in done.stdout, done.stderr
