"""Which HTTP requests are answered: host names, pages of other sites, limits, and headers."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from blackhole.web.base_handler import SECURITY_HEADERS
from blackhole.web.places import CLIENT_SHARE, RESPONSE_TIMEOUT
from blackhole.web.server import MAX_CONNECTIONS, MAX_REQUEST_BODY, MAX_REQUEST_HEADER
from blackhole.web.static_files import CONTENT_TYPES, STATIC
from tests.http_api import Sink, access, ask, below, connect, figures, raw, reached, send, total
from tests.program import SCRIPT, descriptors, free_port, wait_for

CLIENT_MOST = int(MAX_CONNECTIONS * CLIENT_SHARE)

NAMES = ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "192.0.2.1", "sink.example.com", "{host}"]
OTHER_NAMES = ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "example.com"]


@pytest.fixture(scope="module")
def named() -> Iterator[Sink]:
    port = free_port()
    with Sink(f"--dashboard=127.0.0.1:{port},name=Sink.example.com,name=other.example") as program:
        program.http = port
        program.dashboard()
        yield program


SECURED = ("--dashboard_cert=auto", "--dashboard_path=/mail/sink")


@pytest.fixture(scope="module", params=[(), SECURED], ids=["http", "https"])
def sink(request: pytest.FixtureRequest) -> Iterator[Sink]:
    """One server for all tests that do not change it; under TLS all paths are below another one."""
    if request.param:
        pytest.importorskip("cryptography", reason="cryptography is not installed")
    with Sink(*request.param) as program:
        program.dashboard()
        yield program


@pytest.mark.parametrize("name", NAMES)
def test_a_request_with_an_allowed_host_is_answered(named: Sink, name: str) -> None:
    host = name.format(host=socket.gethostname())
    assert ask(named.http, "/stats.json", Host=host).status == 200
    assert ask(named.http, "/stats.json", Host=f"{host}:{named.http}").status == 200


@pytest.mark.parametrize("name", OTHER_NAMES)
@pytest.mark.parametrize(
    "path", ["/", "/stats.json", "/metrics", "/runs", "/events", "/static/page.js", "/none"]
)
def test_a_request_with_another_host_is_refused(named: Sink, name: str, path: str) -> None:
    """A page of another site could let its own name resolve to 127.0.0.1 (DNS rebinding)."""
    answer = ask(named.http, path, Host=f"{name}:{named.http}")
    assert answer.status in (400, 421)
    assert ask(named.http, "/runs", "POST", '{"name": "evil"}', Host=f"{name}:{named.http}").status in (
        400,
        421,
    )
    assert figures(named.http)["runs"] == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site", "Origin": "https://evil.example", "Content_Type": "text/plain"},
    ],
)
def test_a_post_from_a_page_of_another_site_is_refused(sink: Sink, headers: dict[str, str]) -> None:
    assert ask(sink.http, "/runs", "POST", '{"name": "evil"}', **headers).status == 403
    assert ask(sink.http, "/runs").json == []
    assert "access-control-allow-origin" not in ask(sink.http, "/stats.json", **headers).headers


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://["},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "none, cross-site"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/stats.json", "/metrics", "/events", "/wait", "/scenario", "/none"])
def test_a_page_of_another_site_cannot_read(sink: Sink, path: str, headers: dict[str, str]) -> None:
    answer = ask(sink.http, path, **headers)
    assert (answer.status, list(answer.json)) == (403, ["error"])


@pytest.mark.parametrize("path", ["/", "/stats.json", "/metrics"])
@pytest.mark.parametrize(
    "headers",
    [{"Sec_Fetch_Site": "none"}, {"Sec_Fetch_Site": "same-origin"}, {"Origin": "{scheme}://{host}"}],
)
def test_the_page_itself_and_other_programs_can_read(sink: Sink, path: str, headers: dict[str, str]) -> None:
    place = {"host": f"127.0.0.1:{sink.http}", "scheme": access(sink.http).scheme}
    filled = {name: text.format(**place) for name, text in headers.items()}
    assert ask(sink.http, path, **filled).status == 200


def test_a_link_of_another_site_leads_to_the_page_and_not_to_the_figures(sink: Sink) -> None:
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert ask(sink.http, "/", Sec_Fetch_Dest="document", **link).status == 200
    assert ask(sink.http, "/", Sec_Fetch_Dest="iframe", **link).status == 403
    assert ask(sink.http, "/stats.json", Sec_Fetch_Dest="document", **link).status == 403


REQUESTS = [
    ("GET", "/", 200), ("HEAD", "/", 200), ("GET", "/stats.json", 200), ("GET", "/none", 404),
    ("GET", "/static/../dashboard.py", 404), ("GET", "/static/..%2fdashboard.py", 404),
    ("GET", "/static/uPlot.LICENSE", 404), ("GET", "/runs/<script>", 404),
    ("DELETE", "/runs", 405), ("PUT", "/", 405), ("OPTIONS", "/runs", 405), ("POST", "/stats.json", 405),
    ("POST", "/runs", 400),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "code"), REQUESTS)
def test_every_response_has_security_headers_and_no_details_of_the_server(
    sink: Sink, method: str, path: str, code: int
) -> None:
    answer = ask(sink.http, path, method, "" if method in ("POST", "PUT") else None)
    assert answer.status == code
    assert "server" not in answer.headers
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers[name.lower()] == value
    assert b"Traceback" not in answer.body
    assert b"tornado" not in answer.body.lower()
    if code >= 400:
        assert list(answer.json) == ["error"]


def test_every_file_of_the_page_is_served_with_its_type_and_etag(sink: Sink) -> None:
    assert {path.name for path in STATIC.iterdir()} == {*CONTENT_TYPES, "uPlot.LICENSE"}
    for name, kind in CONTENT_TYPES.items():
        path = "/" if name == "index.html" else f"/static/{name}"
        answer = ask(sink.http, path)
        assert (answer.status, answer.headers["content-type"]) == (200, kind)
        assert answer.body == (STATIC / name).read_bytes()
        again = ask(sink.http, path, If_None_Match=answer.headers["etag"])
        assert (again.status, again.body) == (304, b"")


def test_the_page_has_no_inline_code_and_no_links_to_other_hosts() -> None:
    """All parts are separate files of this server."""
    page = (STATIC / "index.html").read_text()
    links = re.findall(r"""(?:src|href)="([^"]*)\"""", page)
    assert links
    assert all(re.fullmatch(r"(static/)?[A-Za-z.]+", link) for link in links), "they are below any base path"
    assert not re.search(r"<style|<script(?![^>]* src=)| style=| on[a-z]+=", page)
    assert "url(" not in (STATIC / "page.css").read_text()


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * MAX_REQUEST_HEADER + b"\r\n\r\n",
        b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4097\r\n\r\n"
        + b"x" * (MAX_REQUEST_BODY + 1),
        b"POST /runs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"1000\r\n" + b"x" * 4096 + b"\r\n1000\r\n" + b"x" * 4096 + b"\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"EHLO me\r\n\r\n",
        b"\x16\x03\x01" + bytes(300) + b"\r\n\r\n",
    ],
    ids=["headers", "body", "chunks", "two hosts", "no host", "SMTP", "TLS"],
)  # fmt: skip
def test_a_request_that_is_too_large_or_not_http_is_refused(sink: Sink, octets: bytes) -> None:
    said = raw(sink.http, octets)
    assert said == b"" or re.match(rb"HTTP/1\.1 4[0-9]{2} ", said)
    assert b"Server:" not in said
    assert reached(sink.http)
    assert "Traceback" not in sink.output()


def test_many_slow_clients_are_disconnected_and_do_not_block_others() -> None:
    with Sink() as program, ExitStack() as stack:
        program.dashboard()
        crowd = [
            stack.enter_context(socket.create_connection(("127.0.0.1", program.http)))
            for _ in range(MAX_CONNECTIONS + 200)
        ]
        for client in crowd:
            with suppress(ConnectionError):
                client.sendall(b"GET / HTTP/1.1\r\nX: ")
        wait_for(
            lambda: len(descriptors(*program.dashboards())) <= MAX_CONNECTIONS + 30,
            "further connections are closed",
        )
        send(program.port, 3)
        wait_for(lambda: reached(program.http), "the slow clients are disconnected", timeout=40)
        assert total(program.http) == 3


def test_clients_that_never_read_are_disconnected_and_leave_places_to_others() -> None:
    requests = b"GET /static/uPlot.iife.min.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 150
    with Sink() as program, ExitStack() as stack:
        program.dashboard()
        before = len(descriptors(*program.dashboards()))
        for number in range(MAX_CONNECTIONS):
            source = f"127.0.0.{1 + number // CLIENT_MOST}", 0
            address = "127.0.0.1", program.http
            client = stack.enter_context(socket.create_connection(address, source_address=source))
            client.setblocking(False)
            client.send(requests)
        wait_for(
            lambda: len(descriptors(*program.dashboards())) > before + CLIENT_MOST,
            "they take the places of more than one client",
        )
        wait_for(lambda: reached(program.http), "another request of the same client is answered")
        wait_for(
            lambda: len(descriptors(*program.dashboards())) <= before + 2 and reached(program.http),
            "all are disconnected",
            timeout=RESPONSE_TIMEOUT + 20,
        )
        assert "Traceback" not in program.output()


def test_clients_that_are_gone_hold_no_places(sink: Sink) -> None:
    """Tornado looks for the end of a connection only while nothing of it is left to read."""
    sink.dashboard()
    before = len(descriptors(*sink.dashboards()))
    for path in ("/wait?messages=99&timeout=600", "/events"):
        for extra in (b"", b"G", b"GET /healthz HTTP/1.1\r\n\r\n", b"x" * 20000):
            for _ in range(4):
                with connect(sink.http) as client:
                    request = f"GET {below(sink.http, path)} HTTP/1.1\r\nHost: localhost\r\n\r\n"
                    client.sendall(request.encode() + extra)
    wait_for(lambda: len(descriptors(*sink.dashboards())) <= before, "all places are free")


def test_a_client_that_has_closed_its_side_gets_every_response(named: Sink) -> None:
    """TLS has no such state: a client that goes without close_notify is gone."""
    requests = b"GET /stats.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100
    with connect(named.http) as client:
        client.sendall(requests)
        client.shutdown(socket.SHUT_WR)
        said = b""
        while more := client.recv(65536):
            said += more
            time.sleep(0.001)
    assert said.count(b"HTTP/1.1 200 ") == 100


def test_a_client_has_a_part_of_the_connections_only(sink: Sink) -> None:
    with ExitStack() as stack:
        sink.dashboard()
        before = len(descriptors(*sink.dashboards()))
        for _ in range(CLIENT_MOST + 50):
            stack.enter_context(socket.create_connection(("127.0.0.1", sink.http)))
        wait_for(
            lambda: abs(len(descriptors(*sink.dashboards())) - before - CLIENT_MOST) <= 2,
            "those beyond the limit are closed",
        )
        other = stack.enter_context(connect(sink.http, "127.0.0.2"))
        other.sendall(f"GET {below(sink.http, '/healthz')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert other.recv(100).startswith(b"HTTP/1.1 200 ")
    wait_for(lambda: len(descriptors(*sink.dashboards())) <= before, "all are closed")


WILD_ACCEPTS = [
    "application/openmetrics-text;version=x",
    "application/openmetrics-text;version=1.x",
    "text/plain;version=x",
    "text/plain; version=",
    "application/openmetrics-text;version=9.9.9",
    "application/openmetrics-text;version=" + "9" * 5000,
    "application/openmetrics-text;version=1.0.0\xff",
]


@pytest.mark.parametrize("accept", WILD_ACCEPTS)
def test_metrics_in_an_unknown_format_are_plain_text(sink: Sink, accept: str) -> None:
    answer = ask(sink.http, "/metrics", Accept=accept)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize("path", ["/next", "/runs", "/scenario"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-le", "cp037"])
def test_a_body_in_another_encoding_than_utf_8_is_refused(sink: Sink, path: str, encoding: str) -> None:
    octets = '{"name": "x"}'.encode(encoding)
    fields = f"Host: localhost\r\nContent-Length: {len(octets)}\r\nConnection: close\r\n\r\n"
    head = f"POST {below(sink.http, path)} HTTP/1.1\r\n{fields}".encode()
    assert raw(sink.http, head + octets).startswith(b"HTTP/1.1 400 ")
    assert "Traceback" not in sink.output()


@pytest.mark.parametrize("path", ["/stats.json", "/metrics"])
def test_a_dashboard_with_few_descriptors_has_few_connections(path: str) -> None:
    command = ("sh", "-c", 'ulimit -n 64 && exec "$@"', "sh", *SCRIPT)
    with Sink("--workers=1", command=command) as program, ExitStack() as stack:
        program.dashboard()
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", program.http)))
        other = stack.enter_context(socket.socket())
        other.bind(("127.0.0.2", 0))
        other.connect(("127.0.0.1", program.http))
        other.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert other.recv(100).startswith(b"HTTP/1.1 200 ")
        assert "Traceback" not in program.output()
