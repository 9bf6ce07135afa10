"""HTTPS of the dashboard: who trusts it, what a reload changes, and clients that send garbage."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from blackhole import options, testing
from blackhole.process import configuration
from blackhole.web.server import MAX_CONNECTIONS
from tests.certificates import Certificate, issue
from tests.external_programs import path_of, requires
from tests.http_api import SPECIAL_ACCESS, DashboardAccess, Sink, ask, below, connect, reached, send, url
from tests.program import descriptors, free_port, run, wait_for
from tests.redis_server import RedisServer

BASE_PATH = "/mail/sink"
TOKEN = "c2VjcmV0LXRva2VuLW9mLXRlc3Rz"


@pytest.fixture(scope="module")
def secured() -> Iterator[Sink]:
    """A dashboard with a certificate that was issued at start, below a path."""
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    with Sink("--dashboard_cert=auto", f"--dashboard_path={BASE_PATH}/", "--hostname=mx.test") as program:
        program.dashboard()
        yield program


@pytest.fixture
def authority(secured: Sink, tmp_path: Path) -> Path:
    path = tmp_path / "authority.pem"
    path.write_bytes(ask(secured.http, "/authority.pem").body)
    return path


def test_server_tells_where_its_dashboard_is(secured: Sink) -> None:
    assert f"dashboard on https://127.0.0.1:{secured.http}{BASE_PATH}/\n" in secured.output()
    assert "strict-transport-security" not in ask(secured.http, "/").headers


def test_paths_outside_of_the_base_path_are_not_found(secured: Sink) -> None:
    (base_path, tls), port = SPECIAL_ACCESS[secured.http], secured.http
    SPECIAL_ACCESS[port] = DashboardAccess("", tls)
    try:
        for path in ("/", "/healthz", "/static/page.js", "/mail", f"{BASE_PATH}x/", f"//{BASE_PATH}/", "/x"):
            assert ask(port, path).status == 404, path
        without_slash = ask(port, f"{BASE_PATH}?x=1")
        assert (without_slash.status, without_slash.headers["location"]) == (308, "sink/")
    finally:
        SPECIAL_ACCESS[port] = DashboardAccess(base_path, tls)


def test_location_of_a_run_is_below_the_base_path(secured: Sink) -> None:
    started = ask(secured.http, "/runs", "POST", '{"name": "nightly"}')
    assert started.headers["location"] == f"{BASE_PATH}/runs/nightly"


@requires("curl")
def test_curl_trusts_the_authority_and_nobody_else(secured: Sink, authority: Path) -> None:
    def curl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [path_of("curl"), "-sS", "-L", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    page = curl("--cacert", str(authority), url(secured.http).removesuffix("/"))
    assert "<title>Blackhole</title>" in page.stdout, page.stderr
    assert curl(url(secured.http)).returncode == 60, "the authority is not known"
    plain = curl(url(secured.http).replace("https:", "http:"))
    assert "speaks HTTPS here" in plain.stdout


GARBAGE = (
    *(b"", b"x", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01\xff\xff" + bytes(70000)),
    *(b"\x15\x03\x01\x00\x02\x02\x28", os.urandom(3000), b"EHLO me\r\n", b"GET / HTTP/1.1\r\n" * 9),
)


def test_garbage_in_place_of_tls_ends_the_connection_and_is_not_logged(secured: Sink) -> None:
    before = len(descriptors(*secured.dashboards()))
    request = f"GET {below(secured.http, '/events')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    for octets in GARBAGE:
        for ends in ("close", "reset"):
            with socket.create_connection(("127.0.0.1", secured.http), 30) as client, suppress(OSError):
                client.sendall(octets)
                if ends == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        for first in (b"", request):
            with connect(secured.http) as client, suppress(OSError):
                client.sendall(first)
                if first:
                    client.recv(1)
                os.write(client.fileno(), octets)  # not under TLS
    wait_for(lambda: len(descriptors(*secured.dashboards())) <= before, "all connections are closed")
    assert reached(secured.http)
    assert "Traceback" not in secured.output()


def test_handshakes_that_never_end_leave_places_to_others(secured: Sink) -> None:
    before = len(descriptors(*secured.dashboards()))
    with ExitStack() as stack:
        for number in range(MAX_CONNECTIONS + 50):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", secured.http), 30))
            with suppress(OSError):
                client.sendall(b"\x16\x03\x01\x02\x00\x01"[: 1 + number % 6])
        wait_for(
            lambda: len(descriptors(*secured.dashboards())) <= before + MAX_CONNECTIONS // 2 + 2,
            "those beyond the share of one client are closed",
        )
        other = stack.enter_context(connect(secured.http, "127.0.0.2"))
        other.sendall(f"GET {below(secured.http, '/healthz')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert other.recv(100).startswith(b"HTTP/1.1 200 ")
        wait_for(lambda: reached(secured.http), "the same client is answered too", 30)
    wait_for(lambda: len(descriptors(*secured.dashboards())) <= before, "all are closed")


def options_of(certificate: Certificate) -> tuple[str, str]:
    return f"--dashboard_cert={certificate.cert}", f"--dashboard_key={certificate.key}"


def test_reload_takes_a_new_certificate(tmp_path: Path) -> None:
    first = issue(tmp_path)
    with Sink(*options_of(first), "--workers=1") as sink:
        SPECIAL_ACCESS[sink.http] = DashboardAccess("", first.client)
        sink.dashboard()
        send(sink.port, 3)
        ask(sink.http, "/runs", "POST", '{"name": "nightly"}')
        second = issue(tmp_path)
        assert reached(sink.http), "the files alone change nothing"
        os.kill(sink.pid, signal.SIGHUP)
        SPECIAL_ACCESS[sink.http] = DashboardAccess("", second.client)
        wait_for(lambda: reached(sink.http), "the new certificate is in use")
        assert ask(sink.http, "/stats.json").json["messages"]["accepted"] == 3
        assert ask(sink.http, "/runs/nightly").json["running"], "what the dashboard kept is still there"
        Path(second.cert).write_text("not a certificate")
        os.kill(sink.pid, signal.SIGHUP)
        wait_for(lambda: "there is no certificate in" in sink.output(), "the log says why")
        assert reached(sink.http), "the certificate before stays in use"


def test_actions_for_a_fleet_trust_the_certificate_of_their_server(tmp_path: Path) -> None:
    """It is for another name than that of the address, and of an authority that nobody trusts."""
    certificate, token, port = issue(tmp_path), tmp_path / "token", free_port()
    token.write_text(TOKEN)
    token.chmod(0o600)
    dashboard = f"--dashboard=127.0.0.1:{port},token={token}"
    with RedisServer() as redis, Sink(
        dashboard, *options_of(certificate), f"--dashboard_path={BASE_PATH}", "--workers=1",
        f"--fleet=redis://127.0.0.1:{redis.port}/0", f"--pid={tmp_path}/pid",
    ) as sink:  # fmt: skip
        send(sink.port, 3)

        def counted() -> bool:
            return "3 messages" in run("status", "--scope=fleet", f"--pid={tmp_path}/pid", dashboard).stdout

        wait_for(counted, "the status of the fleet", 30)
        report = run("report", "--scope=fleet", f"--pid={tmp_path}/pid", dashboard)
        assert "3 messages" in report.stdout, report.stderr


def test_sink_for_tests_reaches_its_dashboard() -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    with testing.Sink(dashboard_cert="auto", dashboard_path=BASE_PATH, hostname="mx.test") as sink:
        assert sink.dashboard_url == f"https://127.0.0.1:{sink.dashboard_port}{BASE_PATH}/"
        sink.next("RCPT", "450 4.2.1 Later")
        assert sink.request("GET", "/next")[0]["left"] == 1
        sink.reset()
        context = ssl.create_default_context(cadata=sink.authority)
        with socket.create_connection(("127.0.0.1", sink.dashboard_port), 30) as plain:
            context.wrap_socket(plain, server_hostname="mx.test").close()
    assert sink.dashboard_url == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "[2001:db8::1]", "sink.example.com"])
def test_token_that_crosses_the_network_in_clear_gives_a_warning(
    host: str, tmp_path: Path, certificate: Certificate
) -> None:
    for_network = warnings_of(tmp_path, f"{host}:8025")
    assert "the token crosses the network unencrypted; set dashboard_cert" in for_network
    assert "unencrypted" not in warnings_of(tmp_path, f"{host}:8025", *options_of(certificate))
    for loopback in ("127.0.0.5", "localhost", "[::1]"):
        assert "unencrypted" not in warnings_of(tmp_path, f"{loopback}:8025")


def warnings_of(folder: Path, dashboard: str, *more: str) -> str:
    token = folder / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    warnings: list[str] = []
    parsed = options.parse([f"--dashboard={dashboard},token={token}", *more], {})
    configuration.read(parsed.settings, warnings.append)
    return "\n".join(warnings)
