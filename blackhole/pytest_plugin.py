"""The pytest plugin: the fixtures `blackhole` and `blackhole_session`, each a Sink, and a namespace of it.

    def test_sends_a_welcome_message(blackhole):
        send_welcome("bob@example.com", host=blackhole.host, port=blackhole.port)
        blackhole.wait(messages=1)

Options come from the marker `blackhole`, from the command line, and from the ini file.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from blackhole.testing.sink import Sink
    from blackhole.testing.sink_namespace import SinkNamespace

INI_KEY: Final = "blackhole_options"
FIXTURES: Final = frozenset(("blackhole", "blackhole_session"))
MARKER: Final = "blackhole(mode, scenario, **options): options of the server of the fixture blackhole"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and the ini key."""
    group = parser.getgroup("blackhole", "servers of Blackhole")
    group.addoption(
        "--blackhole-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the servers of the fixtures, such as mode=bounce; may be repeated",
    )
    parser.addini(INI_KEY, "options of the servers of the fixtures, a NAME=VALUE a line", type="linelist")


def pytest_configure(config: pytest.Config) -> None:
    """Add the marker."""
    config.addinivalue_line("markers", MARKER)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the first server start faster: the launcher gets ready while other tests run."""
    needed = any(FIXTURES.intersection(getattr(item, "fixturenames", ())) for item in session.items)
    if needed and not session.config.option.collectonly:
        _testing().launcher.LAUNCHER.prepare()


def _testing() -> Any:
    """Return the package `blackhole.testing`: most runs of pytest do not need it."""
    if sys.platform != "linux":
        raise pytest.UsageError("the fixtures of Blackhole need Linux")
    import blackhole.testing

    return blackhole.testing


def configured_options(config: pytest.Config) -> dict[str, Any]:
    """Return the options of the ini file and the command line. Raises UsageError."""
    found: dict[str, Any] = {}
    for text in (*config.getini(INI_KEY), *config.getoption("blackhole_option")):
        name, equals, value = text.partition("=")
        if not equals:
            raise pytest.UsageError(f"{text!r}: expected NAME=VALUE")
        found[name.strip().lstrip("-").replace("-", "_")] = value.strip()
    return found


@pytest.fixture
def blackhole(request: pytest.FixtureRequest) -> Iterator[Sink]:
    """Start a server for one test."""
    options = configured_options(request.config)
    marker = request.node.get_closest_marker("blackhole")
    arguments = () if marker is None else marker.args
    if marker is not None:
        options |= marker.kwargs
    with _testing().Sink(*arguments, **options) as sink:
        yield sink


@pytest.fixture
def blackhole_namespace(blackhole_session: Sink, request: pytest.FixtureRequest) -> Iterator[SinkNamespace]:
    """Make a namespace for one test in the server of all tests, whose option namespace_by chooses it."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40]
    with blackhole_session.namespace(f"{name}-{os.getpid()}") as namespace:
        yield namespace


@pytest.fixture(scope="session")
def blackhole_session(request: pytest.FixtureRequest) -> Iterator[Sink]:
    """Start a server for all tests; `reset` returns it to its first state."""
    with _testing().Sink(**configured_options(request.config)) as sink:
        yield sink
