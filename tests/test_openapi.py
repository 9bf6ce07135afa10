"""The description of the HTTP API, and whether the API does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blackhole.web.app import PATH_PARAMETERS, ROUTES, description
from tests.http_api import Sink, ask, url
from tests.program import ROOT

BASE_PATH = "/mail/sink"


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    """A server whose API is under TLS, below another path."""
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    with Sink("--dashboard_cert=auto", f"--dashboard_path={BASE_PATH}", "--namespace-by=tag") as program:
        program.dashboard()
        yield program


NOT_IN_THE_API = {"/", "/static/{file}", "/events"}


@pytest.mark.pure
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_every_method_of_a_handler_is_described(route: object) -> None:
    described = {operation.method for operation in route.operations}
    methods = {*route.handler.allowed_methods()} - {"HEAD"}
    assert described == (set() if route.path in NOT_IN_THE_API else methods)


@pytest.mark.pure
def test_a_path_matches_what_its_parameters_allow() -> None:
    (stop,) = (route for route in ROUTES if route.path == "/runs/{run}/stop")
    assert re.fullmatch(stop.pattern, "/runs/nightly-1/stop")
    assert not re.fullmatch(stop.pattern, "/runs/nightly/1/stop")
    names = {name for route in ROUTES for name in re.findall(r"{(\w+)}", route.path)}
    assert names == {*PATH_PARAMETERS}


@pytest.mark.pure
def test_ids_of_operations_differ() -> None:
    ids = [
        operation["operationId"] for path in description()["paths"].values() for operation in path.values()
    ]
    assert len({*ids}) == len(ids)


def test_the_description_is_served(sink: Sink) -> None:
    answer = ask(sink.http, "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["openapi"].startswith("3.1")
    assert answer.json["servers"] == [{"url": BASE_PATH}]
    assert answer.json["paths"]["/scenario"]["put"]["summary"].startswith("Put a scenario in force")


@pytest.mark.pure
def test_without_a_base_path_the_api_is_at_the_root() -> None:
    assert description()["servers"] == [{"url": "/"}]


@pytest.mark.parametrize(("path", "methods"), [("/healthz", "GET, HEAD"), ("/runs", "GET, POST")])
def test_the_error_for_a_wrong_method_names_the_right_ones(sink: Sink, path: str, methods: str) -> None:
    answer = ask(sink.http, path, "PATCH")
    assert (answer.status, answer.headers["allow"]) == (405, methods)


CONFIGURATION = """
[checks]
positive_data_acceptance.enabled = false

[[operations]]
include-path = ["/wait", "/namespaces/{namespace}/wait"]
checks.not_a_server_error.enabled = false
"""
"""No schema says which scenario has no mistake. The status 504 of /wait says that no mail came in time."""


@pytest.mark.timeout(400)
def test_schemathesis_finds_no_response_that_is_not_described(sink: Sink, tmp_path: Path) -> None:
    """It sends valid and invalid requests to every operation, and compares the responses with the schemas.

    In one thread: `ast.parse` of Python 3.11, which it uses, fails in several (CPython issue 106905).
    """
    pytest.importorskip("schemathesis", reason="schemathesis has no wheels for this Python")
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    authority = tmp_path / "authority.pem"
    authority.write_bytes(ask(sink.http, "/authority.pem").body)
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "run"),
            *(f"{url(sink.http)}openapi.json", f"--tls-verify={authority}"),
            *("--phases=coverage,fuzzing", "--max-examples=10", "--generation-deterministic", "--no-color"),
        ],
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.schemathesis_hooks", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=360,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    tested = re.search(r"Tested: +(\d+)", done.stdout)
    assert tested
    assert int(tested[1]) == sum(len(route.operations) for route in ROUTES) - 1, "all but its own source"
    assert "Traceback" not in sink.output()
