"""The program with a dashboard, and requests to its HTTP API."""

from __future__ import annotations

import http.client
import json
import smtplib
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from blackhole.store.server_facts import ServerFacts
from tests.program import Program, children, free_port, title, wait_for

TITLE = "blackhole: dashboard"


class Answer(NamedTuple):
    """A response; names of header fields are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class DashboardAccess(NamedTuple):
    """How requests reach a dashboard."""

    base_path: str = ""
    """What all paths begin with."""
    tls: ssl.SSLContext | None = None
    """What a client trusts, if the dashboard has TLS."""

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"


PLAIN_ACCESS = DashboardAccess()

SPECIAL_ACCESS: dict[int, DashboardAccess] = {}
"""Port of a running dashboard that is not reached by plain HTTP at the root -> how it is."""


def access(port: int) -> DashboardAccess:
    return SPECIAL_ACCESS.get(port, PLAIN_ACCESS)


def below(port: int, path: str) -> str:
    """Return a path of the dashboard at a port, with what all of them begin with."""
    return access(port).base_path + path


def url(port: int, path: str = "/") -> str:
    """Return the URL of a path of the dashboard at a port."""
    return f"{access(port).scheme}://localhost:{port}{below(port, path)}"


def connect(port: int, source: str = "") -> socket.socket:
    """Return a connection to a dashboard, from an address of 127.0.0.0/8."""
    plain = socket.create_connection(("127.0.0.1", port), 30, (source, 0) if source else None)
    tls = access(port).tls
    if tls is None:
        return plain
    try:
        return tls.wrap_socket(plain, server_hostname="127.0.0.1")
    except BaseException:
        plain.close()
        raise


def ask(port: int, path: str, method: str = "GET", body: str | None = None, **headers: str) -> Answer:
    """Send one request; underscores in names of header fields become hyphens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    if (tls := access(port).tls) is not None:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=tls)
    try:
        names = {name.replace("_", "-"): text for name, text in headers.items()}
        connection.request(method, below(port, path), body, names)
        answer = connection.getresponse()
        return Answer(
            answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read()
        )
    finally:
        connection.close()


def figures(port: int, query: str = "") -> Any:
    """Return /stats.json."""
    return ask(port, f"/stats.json{query}").json


def post(port: int, path: str, what: object = None) -> Answer:
    """Post JSON."""
    return ask(port, path, "POST", json.dumps(what))


def total(port: int) -> int:
    """Return the number of messages so far."""
    return sum(figures(port)["messages"].values())


def send(port: int, messages: int = 1) -> None:
    """Send messages in one session."""
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        for _ in range(messages):
            client.sendmail("a@example.com", ["b@example.com", "c@example.com"], "Subject: x\r\n\r\nx\r\n")


def sent(port: int) -> bool:
    """Send a message and return whether it was accepted. It may fail while workers are replaced."""
    try:
        send(port)
    except (OSError, smtplib.SMTPException):
        return False
    return True


def raw(port: int, octets: bytes) -> bytes:
    """Send octets and return everything received until the connection is closed."""
    with connect(port) as client:
        said = b""
        with suppress(ConnectionError, ssl.SSLError):
            client.sendall(octets)
            while more := client.recv(65536):
                said += more
        return said


class Sink(Program):
    """The program with a dashboard. With `--dashboard_cert=auto`, requests to it trust what it has issued."""

    def __init__(self, *options: str, **more: Any) -> None:
        self.http = free_port()
        if not any(option.startswith("--dashboard=") for option in options):
            options = (*options, f"--dashboard=127.0.0.1:{self.http}")
        self._given = options
        super().__init__(*options, **more)

    def __enter__(self) -> Sink:
        super().__enter__()
        if any(option.startswith(("--dashboard_cert", "--dashboard_path")) for option in self._given):
            facts = ServerFacts.of(self.pid)
            authority = facts["authority"] if facts["dashboard"].startswith("https:") else ""
            tls = ssl.create_default_context(cadata=authority) if authority else None
            SPECIAL_ACCESS[self.http] = DashboardAccess(facts["options"]["dashboard_path"], tls)
        return self

    def __exit__(self, *_: object) -> None:
        SPECIAL_ACCESS.pop(self.http, None)
        super().__exit__(*_)

    def dashboards(self) -> list[int]:
        """Return the process ids; during a reload there may be two."""
        return [pid for pid in children(self.pid) if title(pid) == TITLE]

    def dashboard(self) -> int:
        """Wait until the dashboard answers, and return its process id."""

        def look() -> int:
            found = self.dashboards()
            return found[0] if len(found) == 1 and reached(self.http) else 0

        return wait_for(look, "the dashboard answers")


def reached(port: int) -> bool:
    """Return whether a dashboard answers at the port."""
    try:
        return ask(port, "/healthz").status == 200
    except OSError:
        return False
