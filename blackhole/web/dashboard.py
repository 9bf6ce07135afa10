"""The dashboard's process: samples the counters once a second, and answers HTTP.

It is never in the way of mail: it reads what the workers write, it writes orders that they read in
their own time (`web.control`), and it has no other tie to them. So what it refuses it refuses for its
own sake: strangers' pages (Host, Origin), and requests that are too many, too large or too slow.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream, StreamClosedError
from tornado.web import Application, RequestHandler

from blackhole.metrics import report
from blackhole.metrics.counters import Counters
from blackhole.metrics.snapshot import Snapshot
from blackhole.process.logs import reopen
from blackhole.process.plan import ChildContext
from blackhole.settings import Settings
from blackhole.web.control import Control, NextRulesHandler, ScenarioHandler
from blackhole.web.figures import StatsView
from blackhole.web.history import History, Run
from blackhole.web.pages import APIError, BaseHandler

log = logging.getLogger(__name__)

# Limits. A scraper and some open pages are far below them.
CONNECTIONS: Final = 256
VIEWERS: Final = 32
"""Pages that are kept up to date."""
WAITERS: Final = 64
"""Requests to /wait."""
HEADERS: Final = 8192
BODY: Final = 4096
"""Octets of a request."""
BUFFER: Final = 65536
"""Octets that the kernel keeps for one who does not read."""
PATIENCE: Final = 10
"""Seconds for a request to arrive; also for a viewer to take an event."""
LONGEST: Final = 3600
"""Seconds /wait may wait."""
LOOK: Final = 0.02
"""Seconds between two looks of /wait."""

RUN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""The name of a run."""

STATIC: Final = Path(__file__).parent / "static"
TYPES: Final = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "uPlot.min.css": "text/css; charset=utf-8",
    "uPlot.iife.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""Every file of the page; there is no way to any other."""

MEDIA: Final = {
    "text": "text/plain; charset=utf-8",
    "json": "application/json",
    "junit": "application/xml; charset=utf-8",
}
"""By the format of a report."""


class StaticFile(NamedTuple):
    """A file of the page, in memory."""

    kind: str
    body: bytes
    etag: str


def files() -> dict[str, StaticFile]:
    """The page."""
    bodies = {name: (STATIC / name).read_bytes() for name in TYPES}
    return {
        name: StaticFile(TYPES[name], body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
        for name, body in bodies.items()
    }


class NotFoundHandler(BaseHandler):
    """There is no such thing here."""

    def prepare(self) -> None:
        super().prepare()
        raise APIError(HTTPStatus.NOT_FOUND, "There is nothing of that name.")


class StaticHandler(BaseHandler):
    """A file of the page."""

    def get(self, name: str = "index.html") -> None:
        file = self.dashboard.files.get(name)
        if file is None:
            raise APIError(HTTPStatus.NOT_FOUND, "There is nothing of that name.")
        self.set_header("Content-Type", file.kind)
        self.set_header("Cache-Control", "no-cache")
        self.set_header("ETag", file.etag)
        if self.check_etag_header():
            self.set_status(HTTPStatus.NOT_MODIFIED)
        else:
            self.write(file.body)

    head = get


class HealthHandler(BaseHandler):
    """Whether the dashboard is alive; that it answers says so."""

    def get(self) -> None:
        self.say({"alive": True})

    head = get


class ReadyHandler(BaseHandler):
    """Whether some worker takes connections."""

    def get(self) -> None:
        workers = self.dashboard.figures.accepting()
        if not workers:
            self.set_status(HTTPStatus.SERVICE_UNAVAILABLE)
        self.say({"workers": workers})

    head = get


class StatsHandler(BaseHandler):
    """/stats.json."""

    def get(self) -> None:
        dashboard, figures = self.dashboard, self.dashboard.figures
        self.say(dashboard.now(figures.read()) | {"history": figures.history(), "rules": figures.rules()})


class MetricsHandler(BaseHandler):
    """/metrics, for Prometheus."""

    def get(self) -> None:
        exposition = self.dashboard.exposition
        if exposition is None:
            raise APIError(
                HTTPStatus.NOT_IMPLEMENTED,
                "Metrics need the Python package prometheus_client: pip install 'blackhole[metrics]'",
            )
        figures = self.dashboard.figures
        kind, text = exposition(figures.read(), figures.cpu(), self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", kind)
        self.write(text)


class EventsHandler(BaseHandler):
    """The live figures, as server-sent events."""

    async def get(self) -> None:
        dashboard = self.dashboard
        if len(dashboard.viewers) >= VIEWERS:
            raise APIError(HTTPStatus.SERVICE_UNAVAILABLE, f"{VIEWERS} pages are open already.")
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        dashboard.viewers.add(self)
        try:
            figures = dashboard.figures
            known = {"rules": figures.rules(), "choices": dashboard.control.choices}
            self.write(event("past", figures.history() | known))
            self.write(event("now", dashboard.now(figures.latest())))
            while True:
                # One who does not take what is sent gets no more of it; the others do not wait for him.
                async with asyncio.timeout(PATIENCE):  # wait_for() may lose the word that all is to end
                    await self.flush()
                self.write(await dashboard.news())
        except (StreamClosedError, TimeoutError):
            self.request.connection.stream.close()  # type: ignore[union-attr]
        except asyncio.CancelledError:
            self.finish()  # the server stops, which is no error to tell of
            raise
        finally:
            dashboard.viewers.discard(self)

    def on_connection_close(self) -> None:
        self.dashboard.viewers.discard(self)


def event(kind: str, what: object) -> str:
    """A server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(what, separators=(',', ':'))}\n\n"


class WaitHandler(BaseHandler):
    """/wait: answers when so many messages have come, since the request or since a run began."""

    async def get(self) -> None:
        dashboard = self.dashboard
        wanted = self.number("messages", 1, 1e15, "1")
        timeout = self.number("timeout", 0, LONGEST, "60")
        name = self.get_query_argument("run", "")
        first = dashboard.figures.read()
        if name:
            run = dashboard.named(name)
            if run.ended:
                raise APIError(HTTPStatus.CONFLICT, f"The run {name} has ended.")
            start = sum(dashboard.figures.at_start(run).messages.values())
        else:
            start = sum(first.messages.values())
        if dashboard.waiters >= WAITERS:
            raise APIError(HTTPStatus.SERVICE_UNAVAILABLE, f"{WAITERS} requests wait already.")
        dashboard.waiters += 1
        try:
            while True:
                last = dashboard.glance()
                came = sum(last.messages.values()) - start
                if came >= wanted or last.seconds - first.seconds >= timeout or self.gone:
                    break
                await asyncio.sleep(LOOK)
        finally:
            dashboard.waiters -= 1
        if came < wanted:
            self.set_status(HTTPStatus.GATEWAY_TIMEOUT)
        self.say({"messages": came, "seconds": last.seconds - first.seconds})


class RunsHandler(BaseHandler):
    """/runs: those there are, and a new one."""

    def get(self) -> None:
        figures = self.dashboard.figures
        now = figures.read()
        self.say([figures.summary(run, now) for run in figures.ledger.runs()])

    def post(self) -> None:
        ledger, figures = self.dashboard.figures.ledger, self.dashboard.figures
        name = self._name()
        if ledger.run(name):
            raise APIError(HTTPStatus.CONFLICT, f"There is a run {name} already.")
        now = figures.read()
        if not ledger.start(name, now.cells, now.open):
            raise APIError(HTTPStatus.CONFLICT, "Too many runs are under way; stop one.")
        self.set_status(HTTPStatus.CREATED)
        self.set_header("Location", f"/runs/{name}")
        self.say(figures.report(self.dashboard.named(name)))

    def _name(self) -> str:
        try:
            name = json.loads(self.request.body)["name"]
        except (ValueError, LookupError, TypeError, RecursionError):
            name = None
        if not isinstance(name, str) or not re.fullmatch(RUN, name):
            raise APIError(
                HTTPStatus.BAD_REQUEST,
                'The body is to be {"name": NAME}, of up to 64 letters, digits, dots, hyphens, underscores.',
            )
        return name


class RunHandler(BaseHandler):
    """/runs/NAME: what came in between its start and its end, or now."""

    def get(self, name: str) -> None:
        self.say(self.dashboard.figures.report(self.dashboard.named(name)))


class StopRunHandler(BaseHandler):
    """/runs/NAME/stop."""

    def post(self, name: str) -> None:
        figures = self.dashboard.figures
        self.dashboard.named(name)
        figures.ledger.stop(name, figures.read().cells)
        self.say(figures.report(self.dashboard.named(name)))


class ReportHandler(BaseHandler):
    """The verdict on the sender: since the start, or of a run."""

    def get(self, name: str = "") -> None:
        figures = self.dashboard.figures
        form = self.get_query_argument("format", "text")
        if form not in MEDIA:
            raise APIError(HTTPStatus.BAD_REQUEST, f"format is to be one of {', '.join(MEDIA)}")
        now = figures.read()
        seen = figures.between(self.dashboard.named(name), now) if name else now
        self.set_header("Content-Type", MEDIA[form])
        self.write(report.FORMATS[form](seen))


class DashboardServer(HTTPServer):
    """An HTTP server that turns away what would be one connection too many."""

    connections = 0

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        if self.connections >= CONNECTIONS:
            stream.close()
            return
        self.connections += 1
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        self.connections -= 1
        super().on_close(server_conn)


ROUTES: Final = (
    ("/", StaticHandler),
    ("/static/([A-Za-z.]+)", StaticHandler),
    ("/events", EventsHandler),
    ("/stats.json", StatsHandler),
    ("/metrics", MetricsHandler),
    ("/healthz", HealthHandler),
    ("/readyz", ReadyHandler),
    ("/wait", WaitHandler),
    ("/runs", RunsHandler),
    (f"/runs/({RUN})", RunHandler),
    (f"/runs/({RUN})/stop", StopRunHandler),
    ("/scenario", ScenarioHandler),
    ("/next", NextRulesHandler),
    ("/report", ReportHandler),
    (f"/runs/({RUN})/report", ReportHandler),
)
"""Every page there is."""


class Dashboard:
    """The process. Made as whoever may read the program's files, run as whoever serves."""

    def __init__(
        self, settings: Settings, stats: Counters, ledger: History, context: ChildContext, control: Control
    ) -> None:
        self.figures: Final = StatsView(settings, stats, ledger)
        self.control: Final = control
        self.files: Final = files()
        self.address: Final = replace(settings.dashboard, names=())
        self.names: Final = {
            "localhost",
            settings.hostname,
            socket.gethostname(),
            settings.dashboard.host,
        }.union(settings.dashboard.names)
        self.exposition: Final = exposition()
        self.viewers: Final[set[EventsHandler]] = set()
        self.waiters = 0
        self._stats, self._berth = stats, context
        self._glance = self.figures.read()

    def run(self, sockets: Sequence[socket.socket]) -> None:
        """Answer until told to stop."""
        logging.getLogger("tornado").setLevel(logging.ERROR)  # what strangers send us is no event
        with asyncio.Runner() as runner:
            runner.run(self._live(sockets))

    async def _live(self, sockets: Sequence[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGUSR1, reopen)
        # The pipe's other end is the master's: it closes when the master is gone, however it went.
        loop.add_reader(self._berth.master_alive_fd, stop.set)
        self._news: asyncio.Future[str] = loop.create_future()
        application = Application(
            [(path, page, {"dashboard": self}) for path, page in ROUTES],
            default_handler_class=NotFoundHandler,
            default_handler_args={"dashboard": self},
            cross_origin_protection=True,
            log_function=log_request,
        )
        server = DashboardServer(
            application,
            idle_connection_timeout=PATIENCE,
            body_timeout=PATIENCE,
            max_header_size=HEADERS,
            max_body_size=BODY,
            max_buffer_size=HEADERS + BODY,
        )
        for listening in sockets:  # inherited by every connection: who does not read is soon found out
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        server.add_sockets(sockets)
        self._sample(2)
        await stop.wait()
        server.stop()

    def _sample(self, pause: int = 1) -> None:
        """Once a second, on the second; the first time there is more than one to the next, lest
        a part of a second is taken for a whole one."""
        loop = asyncio.get_running_loop()
        self._stats.heartbeat(self._berth.row)
        self.figures.sample()
        # Without a viewer it is heard by those who have left, if by anybody, so that they do leave.
        self._news.set_result(event("now", self.now(self.figures.latest())) if self.viewers else "")
        self._news = loop.create_future()
        loop.call_at(math.floor(loop.time()) + pause, self._sample)

    def now(self, snapshot: Snapshot) -> dict[str, Any]:
        """All but what was."""
        return self.figures.now(snapshot) | {"scenario": self.control.state()}

    async def news(self) -> str:
        """The event of the next second."""
        return await asyncio.shield(self._news)

    def glance(self) -> Snapshot:
        """The counters as they were a moment ago: many may ask, at the price of one."""
        if time.monotonic() - self._glance.seconds >= LOOK:
            self._glance = self.figures.read()
        return self._glance

    def named(self, name: str) -> Run:
        """The run of that name."""
        run = self.figures.ledger.run(name)
        if run is None:
            raise APIError(HTTPStatus.NOT_FOUND, f"There is no run {name}.")
        return run


def exposition() -> Exposition | None:
    """What makes the text for Prometheus; None where its library is not installed."""
    try:
        from blackhole.web import prometheus
    except ModuleNotFoundError:
        return None
    return prometheus.text


def log_request(page: RequestHandler) -> None:
    """For --debug."""
    log.debug("%d %s %a", page.get_status(), page.request.method, page.request.uri)


Exposition = Callable[[Snapshot, Mapping[str, float], str], tuple[str, bytes]]
