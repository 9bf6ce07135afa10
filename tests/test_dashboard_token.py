"""The token of the dashboard: without it, requests learn nothing but whether the server is alive."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http_api import TITLE, Sink, ask, reached
from tests.program import children, free_port, run, title, wait_for

TOKEN = "c2VjcmV0LXRva2VuLW9mLXRlc3Rz"


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    port = free_port()
    with Sink(f"--dashboard=127.0.0.1:{port},token={path}") as program:
        program.http = port
        wait_for(lambda: any(title(pid) == TITLE for pid in children(program.pid)) and reached(port), "alive")
        yield program


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


PATHS = ["/", "/stats.json", "/metrics", "/scenario", "/next", "/events", "/openapi.json", "/none"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer wrong", f"Bearer {TOKEN}x", "Basic ???", "Basic \xff", basic("wrong"), basic("")],
)
def test_request_without_the_token_is_refused(sink: Sink, path: str, authorization: str) -> None:
    answer = ask(sink.http, path, **({"Authorization": authorization} if authorization else {}))
    assert answer.status == 401
    assert answer.json == {"error": "This needs the token of the dashboard."}
    assert "Basic realm" in answer.headers["www-authenticate"]


@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", f"bearer  {TOKEN}", basic(TOKEN)])
def test_request_with_the_token_is_answered(sink: Sink, authorization: str) -> None:
    assert ask(sink.http, "/stats.json", Authorization=authorization).status == 200
    changed = ask(sink.http, "/next", "DELETE", Authorization=authorization)
    assert changed.status == 200


def test_nobody_changes_anything_without_the_token(sink: Sink) -> None:
    for method, path in (("PUT", "/scenario"), ("POST", "/scenario/check"), ("POST", "/next")):
        assert ask(sink.http, path, method, "{}").status == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_need_no_token(sink: Sink, path: str) -> None:
    assert ask(sink.http, path).status == 200


def test_page_of_another_site_is_refused_although_the_browser_sends_the_token(sink: Sink) -> None:
    answer = ask(sink.http, "/scenario", "PUT", "", Authorization=basic(TOKEN), Sec_Fetch_Site="cross-site")
    assert answer.status == 403


def test_description_tells_which_operations_need_the_token(sink: Sink) -> None:
    described = ask(sink.http, "/openapi.json", Authorization=f"Bearer {TOKEN}").json
    assert described["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert described["paths"]["/next"]["get"]["security"] == [{"token": []}]
    assert "security" not in described["paths"]["/healthz"]["get"]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("short", "expected one line of 16 to 512"),
        (f"{TOKEN}\n{TOKEN}", "expected one line"),
        (None, "No such"),
    ],
)
def test_file_without_a_usable_token_is_an_error(content: str | None, error: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    done = run("-t", f"--dashboard=127.0.0.1:8025,token={path}")
    assert done.returncode == 78
    assert error in done.stderr
    assert TOKEN not in done.stderr


def test_token_that_all_users_can_read_gives_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o644)
    assert "world-readable; chmod o-r" in run("-t", f"--dashboard=127.0.0.1:8025,token={path}").stderr
