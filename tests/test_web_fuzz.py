"""Every HTTP route with every method, and with headers, queries and bodies that no client should send."""

from __future__ import annotations

import json
import random
import re
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from blackhole.web.app import ROUTES
from tests.http_api import Sink, ask, reached
from tests.redis_server import RedisServer
from tests.resource_usage import memory

SEED = 20131
REQUESTS = 6000

PATHS = [
    *(re.sub(r"\{.*?\}", "nightly", route.path) for route in ROUTES),
    *("/static/page.js", "/none", "/runs/nightly", "//", "/%", "/%00", "/\xff", "*", "http://localhost/runs"),
    "/" + "a" * 7000,
]  # fmt: skip

METHODS = (
    *("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "G\xe9T"),
    *("_execute", "prepare", "__init__", "write_error", "GET\t"),
)  # fmt: skip

WILD = (
    "", "x", " ", "\xff\xfe", "\xb2", "\x00", "\t", "a" * 4000, ",", ";", "=", '"', "9" * 4400, "-1",
    "1e9", "nan",
    "inf", "0x10", "null", "%00", "%ff", "\xbd", "../..", "{client}", "<script>", "*/*;q=x", "\x7f\x1b[2J",
)  # fmt: skip

HEADERS = {
    "Host": ("127.0.0.1", "[::1", "[", "a:b:c", "localhost:" + "9" * 4400, "evil.example", "[::1]:99"),
    "Accept": (
        "application/openmetrics-text;version=x", "application/openmetrics-text;version=1.x",
        "text/plain;version=x",
        "application/openmetrics-text;version=9.9.9;escaping=x",
        "application/openmetrics-text; version=1.0.0\xe9",
        "application/openmetrics-text;version=" + "1." * 1000, "application/toml", "application/toml, json",
        "application/openmetrics-text;version=1.0.0;escaping=\x01", "text/plain;version=1;version",
    ),
    "Accept-Encoding": ("gzip", "br, gzip;q=x"),
    "Connection": ("keep-alive", "upgrade"),
    "Content-Length": ("0", "1", "+1", "1, 1", "1, 2", "1048577", "99999999999999999999"),
    "Content-Type": (
        "application/json; charset=utf-16", "multipart/form-data", "multipart/form-data; boundary=\xff",
        'multipart/form-data; boundary="', "application/x-www-form-urlencoded", "text/plain; charset=\xff",
    ),
    "Content-Encoding": ("gzip", "deflate", "x"),
    "Cookie": ("a=b", "a=\xff; b", '"' * 100),
    "Expect": ("100-continue", "x"),
    "If-None-Match": ("*", '"x"', "W/" * 500),
    "If-Modified-Since": ("yesterday",),
    "Origin": ("null", "http://[", "http://127.0.0.1", "http://a@b:c", "//\xff"),
    "Range": ("bytes=0-0", "bytes=" + "0-," * 500),
    "Sec-Fetch-Site": ("none", "same-origin", "same-site", "cross-site"),
    "Sec-Fetch-Mode": ("navigate", "no-cors"),
    "Sec-Fetch-Dest": ("document", "iframe"),
    "Transfer-Encoding": ("chunked", "gzip, chunked", "identity"),
    "Upgrade": ("websocket", "h2c"),
    "X-Forwarded-For": ("::1%x", "256.1.1.1"),
    "X\x00Y": (),
    "X Y": (),
    "\xff": (),
}  # fmt: skip

NAMES = ("messages", "timeout", "run", "format", "name", "", "\xff", "%ff", "_xsrf")

VALUES = (
    0,
    1,
    -1,
    1.5,
    1e300,
    True,
    None,
    [],
    {},
    "x",
    "RCPT",
    "450 4.2.1 Later",
    "a*",
    "1s",
    [[]],
    [{}],
    {"a": 1},
)

KEYS = (
    "phase", "reply", "name", "count", "listener", "client", "tls", "helo", "sender", "recipient", "size",
    "header",
    "attempt", "delay", "then", "hide", "add", "certificate", "blocklist", "window", "chance", "greylist",
    "throttle",
    "when_unknown", "\ud800", "\x00", "seed", "rule",
)  # fmt: skip

RULE = '[[rule]]\nphase = "RCPT"\nreply = "450 4.2.1 Later"\n'

BODIES = (
    b"", b"{}", b"[]", b"nul", b"\xff", b"\xef\xbb\xbf{}", b'{"name": "nightly"}', b'{"name": "\\ud800"}',
    b"[" * 4000,
    b'{"name": ' * 400, b'{"count": 1e999}', b"9" * 4096, b'{"name": NaN}', '{"name": "x"}'.encode("utf-16"),
    '{"phase": "RCPT"}'.encode("utf-32-be"), b"\x00\x00\x00{", b"\xd8\x00{", b"a=%ff&b",
    b"--x\r\n\r\n--x--", b"0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff\r\n", RULE.encode(),
    RULE.encode() + b"size = 0x" + b"f" * 5000,
    RULE.encode() + b"attempt = 1" + b"0" * 4000, b"seed = 1979-05-27\n" + RULE.encode(), b"rule = 1",
    b"[rule]\na = 1",
    b"a" + b".a" * 2000 + b" = 1", b"[[rule]]\nname = " + b'"' * 3, b"about = " + b"[" * 5000,
    b"\x1f\x8b\x08\x00",
)  # fmt: skip


FLEET_REQUESTS = 400

FLEET_PATHS = (
    *("/stats.json", "/fleet", "/wait", "/runs", "/runs/nightly", "/metrics", "/report", "/recent"),
    *("/scenario", "/scenario/check", "/next"),
)

SCOPES = (
    "fleet",
    "fleet",
    "fleet",
    "fleet",
    "machine",
    "machine:x",
    "fleet,fleet",
    "fleet&scope=machine",
    *WILD,
)


@pytest.fixture(scope="module")
def fleet_dashboard(shared_redis: RedisServer) -> Iterator[Sink]:
    store = f"--fleet=redis://127.0.0.1:{shared_redis.port}/0?timeout=5"
    with Sink("--workers=1", "--recent=20", store, "--fleet_control") as program:
        program.dashboard()
        yield program


@pytest.fixture(scope="module")
def dashboard() -> Iterator[Sink]:
    with Sink("--workers=1", "--recent=20", "--show-clients") as program:
        program.dashboard()
        yield program


def json_text(draw: random.Random) -> bytes:
    """Return a JSON object that resembles a one-shot rule."""
    block = {"phase": "RCPT", "reply": "450 4.2.1 Later"}
    return json.dumps(
        block | {draw.choice(KEYS): draw.choice(VALUES) for _ in range(draw.randint(0, 3))}
    ).encode()


def wild_request(draw: random.Random, method: str, path: str) -> bytes:
    """Return a request; most of what it has is in order, so that it gets far."""
    headers = {"Host": "localhost", "Connection": "close"}
    query = "&".join(
        f"{draw.choice(NAMES)}={draw.choice(WILD)[:200]}" for _ in range(draw.choice((0, 0, 1, 2)))
    )
    body = json_text(draw) if draw.random() < 0.3 else draw.choice(BODIES)
    if draw.random() < 0.6 or method in ("POST", "PUT", "PATCH"):
        headers["Content-Length"] = str(len(body))
    for name in draw.sample(sorted(HEADERS), draw.choice((0, 1, 1, 2))):
        headers[name] = draw.choice((*HEADERS[name], draw.choice(WILD)))
    path += f"?{query}" * bool(query) + f"{'&' if query else '?'}timeout=0" * path.endswith("/wait")
    lines = [f"{method} {path} {draw.choice(('HTTP/1.1',) * 9 + ('HTTP/1.0', 'HTTP/9.9', 'x'))}"]
    lines += [f"{name}: {text}" for name, text in headers.items()]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


def status_of(port: int, octets: bytes) -> int:
    """Send octets and return the status of the first response; 0 where there is none."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        with suppress(OSError):  # the server may have closed the connection
            client.sendall(octets)
            client.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            found = re.match(rb"HTTP/1\.1 ([0-9]{3}) ", client.recv(4096))
            return int(found[1]) if found else 0
    return 0


INSERTED = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b": ",
    b" ",
    b"HTTP/1.1",
    b"0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n",
)


def mutated(draw: random.Random, octets: bytes) -> bytes:
    """Return octets with some of them removed, replaced, inserted or repeated."""
    for _ in range(draw.randint(1, 5)):
        place = draw.randrange(len(octets) + 1)
        before, after = octets[:place], octets[place:]
        octets = draw.choice(
            (
                before + after[draw.randint(1, 20) :],
                before + draw.randbytes(draw.randint(1, 8)) + after,
                before + draw.choice(INSERTED) + after,
                before + before[-30:] + after,
                before + after if draw.random() < 0.8 else before,
            )
        )
    return octets


def documented(path: str) -> tuple[int, ...]:
    """Return the statuses from 500 on that a path may have."""
    return {
        "/wait": (503, 504),
        "/events": (503,),
        "/readyz": (503,),
        "/scenario": (503,),
        "/scenario/check": (503,),
        "/next": (503,),
    }.get(path, ())


def test_no_request_makes_a_handler_raise(dashboard: Sink) -> None:
    draw = random.Random(SEED)
    cases = [(method, path) for path in PATHS for method in METHODS]
    cases += [
        (draw.choice(METHODS[:5]), draw.choice(PATHS[: len(ROUTES)])) for _ in range(REQUESTS - len(cases))
    ]
    pid, sizes, failed = dashboard.dashboards(), [], []
    for number, (method, path) in enumerate(cases):
        octets = wild_request(draw, method, path)
        status = status_of(dashboard.http, octets)
        if status >= 500 and status not in documented(path):
            failed.append((status, octets))
        if number % (len(cases) // 4) == 0:
            sizes.append(memory(pid[0])["Anonymous"])
    assert failed == []
    assert "Traceback" not in dashboard.output()
    assert (dashboard.dashboards(), reached(dashboard.http)) == (pid, True)
    assert memory(pid[0])["Anonymous"] - max(sizes) < 2048, sizes
    assert ask(dashboard.http, "/scenario", "DELETE").status == 200


def test_no_octets_make_the_server_raise(dashboard: Sink) -> None:
    """Requests with octets changed at random, one behind the other."""
    draw = random.Random(SEED)
    pid = dashboard.dashboards()
    for _ in range(REQUESTS // 2):
        paths = [draw.choice(PATHS) for _ in range(2)]
        octets = b"".join(mutated(draw, wild_request(draw, draw.choice(METHODS[:7]), path)) for path in paths)
        assert status_of(dashboard.http, octets) not in (500, 501, 502), octets
    assert "Traceback" not in dashboard.output()
    assert (dashboard.dashboards(), reached(dashboard.http)) == (pid, True)


def test_no_request_about_a_fleet_makes_a_handler_raise(fleet_dashboard: Sink) -> None:
    """Its figures, and orders that all its machines obey, which are kept in a real store."""
    draw, pid, failed = random.Random(SEED), fleet_dashboard.dashboards(), []
    orders = (("PUT", "/scenario", RULE), ("POST", "/next", json.dumps({"phase": "RCPT", "reply": "450 x"})))
    for number in range(FLEET_REQUESTS):
        path = f"{draw.choice(FLEET_PATHS)}?scope={draw.choice(SCOPES)[:200]}"
        octets = wild_request(draw, draw.choice(METHODS[:5]), path)
        status = status_of(fleet_dashboard.http, octets)
        if number % 20 == 0:
            method, path, body = orders[number // 20 % 2]
            octets = body.encode()
            status = max(status, ask(fleet_dashboard.http, path, method, body).status)
        if status >= 500 and status not in (503, 504):  # not obeyed in time, or the store does not answer
            failed.append((status, octets))
    assert failed == []
    assert "Traceback" not in fleet_dashboard.output()
    assert (fleet_dashboard.dashboards(), reached(fleet_dashboard.http)) == (pid, True)
    assert ask(fleet_dashboard.http, "/stats.json?scope=fleet").status == 200
    assert ask(fleet_dashboard.http, "/scenario", "DELETE").status == 200
