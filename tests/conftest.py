"""Fixtures, the option --bless, and the rule about skipped tests, for all tests."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from coverage import Coverage

from blackhole import options
from blackhole.net.client_table import ClientTable, ClientTableView
from blackhole.net.tls import TLSContexts
from blackhole.process import auth_file, tls_configuration
from blackhole.rules import scenario
from blackhole.settings import ACCELERATORS, Settings
from tests.certificates import Certificate, issue
from tests.http_api import Sink
from tests.option_samples import WriteConf
from tests.redis_server import RedisServer
from tests.service import Serve, Service


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bless", action="store_true", help="rewrite the transcripts with the replies of the server"
    )


def pytest_report_header() -> str | None:
    return "BLACKHOLE_TEST_ALL=1: a skipped test is a failure" if skips_are_failures() else None


LONG_FILES = (
    *("test_server", "test_program", "test_control", "image_test", "test_testing", "test_session"),
    *("test_supervisor", "test_fleet_control", "test_page", "test_fleet", "test_program_transcripts"),
    *("test_fuzz", "test_web", "test_web_fuzz", "test_verdict_matrix", "test_fleet_network", "deb_test"),
)
"""The files that take longest come first: one that began last would keep a single process busy at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    """Spare the garbage collector the fifteen thousand tests, which it would look through again and again."""
    gc.collect()
    with suppress(AttributeError):  # PyPy does not have it
        gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def find_leaks_in_their_module() -> Iterator[None]:
    """Warn of what was not closed in the module that has not closed it, and not in one that comes later."""
    yield
    gc.collect()


FILES_WITHOUT_COVERAGE = frozenset(
    (
        *("test_auth_senders", "test_clients", "test_documents", "test_exact_counts", "test_faults"),
        *("test_fleet_network", "test_fleet_page", "test_haproxy", "test_layers", "test_limit_log"),
        *("test_monitoring", "test_openapi", "test_page", "test_path_kinds", "test_program_transcripts"),
        *("test_real_senders", "test_recent_page", "test_redis_programs", "test_redis_script"),
        *("test_retries", "test_rule_counters", "test_senders", "test_shared_limits", "test_signal_moments"),
        *("test_site", "test_store_outage", "test_tls_menu_senders", "test_transaction_log"),
        *("test_web_requests", "deb_test", "image_test"),
    )
)
"""The files of which each test is as if it had the mark `without_coverage`.

Of forty thousand steps from line to line, they alone take forty. Without coverage the programs that they
start take half of the processor time, and what runs in the process of the tests a third.
"""


class CoverageSwitch:
    """Turns coverage on and off: that of a process of pytest-xdist, and of the programs that tests start."""

    VARIABLE = "COVERAGE_PROCESS_CONFIG"
    """What makes a program measure its coverage."""

    def __init__(self, is_worker: bool) -> None:
        self.measured = Coverage.current()
        self._of_programs = os.environ.get(self.VARIABLE)
        self._in_process = is_worker and self.measured is not None
        if self.measured is not None:
            # Else each start would patch `os._exit` once more.
            self.measured.set_option("run:patch", [])

    def switch(self, on: bool) -> None:
        if self._of_programs is None or on == (self.VARIABLE in os.environ):
            return
        if on:
            os.environ[self.VARIABLE] = self._of_programs
        else:
            del os.environ[self.VARIABLE]
        if self.measured is not None and self._in_process:
            (self.measured.start if on else self.measured.stop)()


SWITCH = pytest.StashKey[CoverageSwitch]()


def pytest_configure(config: pytest.Config) -> None:
    is_worker = hasattr(config, "workerinput")
    switch = config.stash[SWITCH] = CoverageSwitch(is_worker)
    if switch.measured is not None and not is_worker and config.getoption("dist", "no") != "no":
        switch.measured.stop()  # this process runs no test


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    has_mark = item.get_closest_marker("without_coverage") is not None
    item.config.stash[SWITCH].switch(not has_mark and item.path.stem not in FILES_WITHOUT_COVERAGE)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Save the coverage of a process of pytest-xdist, which is killed if it does not end in 10 seconds."""
    measured = session.config.stash[SWITCH].measured
    if measured is not None:
        measured.save()


def skips_are_failures() -> bool:
    """Whether this machine has everything that the tests need, so that every skip is a failure."""
    return os.environ.get("BLACKHOLE_TEST_ALL") == "1"


def fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Make a skip a failure, unless it is an expected failure, if skips are failures here."""
    if skips_are_failures() and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: {reason}, with BLACKHOLE_TEST_ALL=1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    fail_if_skipped(report)
    return report


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return issue(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def accelerators() -> frozenset[str]:
    """Return the accelerators that are on; a test module may parametrize this."""
    return ACCELERATORS


def tls_contexts(settings: Settings) -> TLSContexts | None:
    """Return the contexts of the first listener, made as the program makes them."""
    of_rules = scenario.tls_parameters(scenario.load_rules(settings.scenario))
    inputs = tls_configuration.read(settings, of_rules, None)
    return tls_configuration.make(settings, inputs, of_rules, pytest.fail).get(settings.listeners[0])


@pytest.fixture
def serve(
    certificate: Certificate, caplog: pytest.LogCaptureFixture, accelerators: frozenset[str]
) -> Iterator[Serve]:
    """Start servers with options; at the end they must have no connection and no warning in the log."""
    services = []

    def start(*argv: str, secure: bool = False, on: frozenset[str] = accelerators) -> Service:
        environ = {"BLACKHOLE_ACCELERATORS": ",".join(on) or "off"}
        settings = options.parse(["--hostname=mx.test", *argv], environ).settings
        if secure and not settings.ssl_cert:
            settings = replace(settings, ssl_cert=certificate.cert, ssl_key=certificate.key)
        contexts = tls_contexts(settings)
        if settings.auth not in ("off", "any"):
            settings = replace(settings, password_files={settings.auth: auth_file.load(settings.auth)[0]})
        ledger = None
        if settings.counts_clients:
            # By a clock that stands still, no minute ends in the middle of a test.
            ledger = ClientTableView(ClientTable(1), 0, lambda: [0], clock=lambda: 0.0)
        listener = settings.listeners[0]
        services.append(Service(settings, replace(listener, tls=secure or listener.tls), contexts, ledger))
        return services[-1]

    yield start
    for service in services:
        service.close()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    """Start one server for all tests that do not change it."""
    with Sink() as program:
        program.dashboard()
        yield program


@pytest.fixture
def write_conf(tmp_path: Path) -> WriteConf:
    """Return a function that writes a conf file and returns its path."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "blackhole.conf"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Run the test as a user without root."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    yield
    os.seteuid(me)


@pytest.fixture
def postfix_folder() -> Iterator[Path]:
    """A folder that the user postfix can reach; it cannot reach the folders of pytest below /root."""
    with tempfile.TemporaryDirectory(prefix="blackhole-postfix-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    """A Redis server for all tests of a module."""
    with RedisServer() as running:
        yield running


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    """The Redis server of the module, empty."""
    shared_redis.ask("FLUSHALL")
    return shared_redis


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis server for one test, which may freeze or kill it."""
    with RedisServer() as running:
        yield running
