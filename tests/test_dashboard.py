"""The dashboard process: its start, its end, reloads, and that mail does not depend on it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.http_api import Sink, ask, figures, post, reached, send, sent, total
from tests.program import (
    MODULE,
    ROOT,
    Program,
    children,
    descriptors,
    free_port,
    run,
    status,
    title,
    wait_for,
)


def test_the_address_of_the_dashboard_is_logged_at_the_start() -> None:
    with Sink() as program:
        lines = program.output().splitlines()
        assert lines[1].endswith(f": dashboard on http://127.0.0.1:{program.http}/")


def test_the_dashboard_shares_no_socket_with_a_worker(sink: Sink) -> None:
    def sockets(pid: int) -> set[str]:
        return {name for name in descriptors(pid) if name.startswith("socket:")}

    mine = sockets(sink.dashboard())
    assert mine
    for worker in sink.workers():
        assert mine.isdisjoint(sockets(worker))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_dashboard_has_the_privileges_of_a_worker(sink: Sink) -> None:
    mine, workers = status(sink.dashboard()), status(sink.workers()[0])
    for name in ("Uid", "Gid", "Groups", "CapEff", "NoNewPrivs"):
        assert mine[name] == workers[name]
    assert mine["Uid"].split()[0] != "0"


def test_dashboard_off_starts_no_dashboard() -> None:
    with Program("--dashboard=off") as program:
        assert [title(pid) for pid in children(program.pid)] == [f"blackhole: worker {n}" for n in (1, 2)]
        assert "dashboard" not in program.output()


def test_a_default_address_in_use_is_a_warning() -> None:
    with ExitStack() as stack:
        with suppress(OSError):  # another process may use it already
            stack.enter_context(socket.create_server(("127.0.0.1", 8025)))
        program = stack.enter_context(Program(env={"BLACKHOLE_DASHBOARD": ""}))
        send(program.port)
        (warning,) = [line for line in program.output().splitlines() if "dashboard" in line]
        assert warning == (
            "blackhole: no dashboard: cannot listen on 127.0.0.1:8025: something else does; see `ss -ltnp`;"
            " --dashboard ADDRESS:PORT moves it, --dashboard off turns it off"
        )


def test_a_configured_address_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(f"--port={free_port()}", "--host=127.0.0.1", f"--dashboard=127.0.0.1:{port}")
    assert done.returncode == os.EX_OSERR
    assert done.stderr == (
        f"blackhole: cannot listen on 127.0.0.1:{port}: something else does; see `ss -ltnp`\n"
    )


def test_mail_is_accepted_while_the_dashboard_hangs_or_dies() -> None:
    with Sink() as program:
        pid = program.dashboard()
        os.kill(pid, signal.SIGSTOP)
        send(program.port, 3)
        os.kill(pid, signal.SIGKILL)
        send(program.port, 3)
        wait_for(lambda: program.dashboard() != pid, "there is another dashboard")
        assert total(program.http) == 6


def test_mail_is_accepted_while_the_dashboard_cannot_start(tmp_path: Path) -> None:
    broken = tmp_path / "prometheus_client"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('by intent')")
    with Sink(env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as program:
        wait_for(lambda: program.output().count("by intent") >= 2, "the start was tried twice")
        send(program.port, 3)
        os.kill(program.pid, signal.SIGHUP)
        wait_for(lambda: "reloaded: listening" in program.output(), "the reload is complete")
        wait_for(lambda: sent(program.port), "mail is accepted")


@pytest.mark.parametrize("fault", ["removed", "broken"])
def test_server_whose_program_was_upgraded_or_removed_goes_on_and_says_so(tmp_path: Path, fault: str) -> None:
    """`pip install --upgrade` and `pip uninstall` while it runs."""
    copy = tmp_path / "blackhole"
    shutil.copytree(ROOT / "blackhole", copy, ignore=shutil.ignore_patterns("__pycache__"))
    # Without byte code: none of it may be written into a folder that is being removed.
    env = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    with Sink(command=MODULE, env=env, cwd=str(tmp_path)) as program:
        dashboard = program.dashboard()
        shutil.rmtree(copy)
        if fault == "broken":
            shutil.copytree(ROOT / "blackhole", copy, ignore=shutil.ignore_patterns("__pycache__"))
            for module in copy.rglob("*.py"):
                module.write_text("raise SystemExit('of another version')")
        os.kill(program.pid, signal.SIGHUP)
        wait_for(lambda: "reloaded: dashboard on" in program.output(), "the reload is complete")
        wait_for(lambda: program.dashboard() != dashboard, "there is another dashboard")
        os.kill(program.dashboard(), signal.SIGKILL)
        os.kill(program.workers()[0], signal.SIGKILL)
        program.wait_until_accepting(2)
        assert program.dashboard()
        assert ask(program.http, "/").status == 200
        assert ask(program.http, "/scenario").status == 200
        assert sent(program.port)
        assert "WARNING the files of the program have changed since its start" in program.output()
        assert "Traceback" not in program.output()


def test_a_reload_moves_the_dashboard_and_keeps_its_runs(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    conf = tmp_path / "blackhole.conf"
    conf.write_text(f"dashboard = 127.0.0.1:{ports[0]}\n")
    with Program(
        "--host=127.0.0.1",
        f"--port={(port := free_port())}",
        f"--conf={conf}",
        env={"BLACKHOLE_DASHBOARD": ""},
    ) as program:
        wait_for(lambda: reached(ports[0]), "the dashboard answers")
        assert post(ports[0], "/runs", {"name": "over-a-reload"}).status == 201
        send(port, 5)
        conf.write_text(f"dashboard = 127.0.0.1:{ports[1]}\n")
        os.kill(program.pid, signal.SIGHUP)
        wait_for(lambda: not reached(ports[0]) and reached(ports[1]), "the dashboard has moved")
        send(port, 5)
        report = post(ports[1], "/runs/over-a-reload/stop").json
        assert report["messages"]["accepted"] == 10
        assert f"dashboard on http://127.0.0.1:{ports[1]}/" in program.output()


def test_a_killed_dashboard_is_replaced_by_one_with_the_same_history() -> None:
    with Sink() as program:
        pid = program.dashboard()
        post(program.http, "/runs", {"name": "long"})
        send(program.port, 50)
        wait_for(lambda: figures(program.http)["rates"]["messages"]["peak"] > 0, "a sample was taken")
        before = figures(program.http)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: program.dashboard() != pid, "there is another dashboard")
        after = figures(program.http, "?history=1")
        assert after["rates"]["messages"]["peak"] >= before["rates"]["messages"]["peak"]
        assert 0 < sum(filter(None, after["history"]["seconds"]["messages"])) <= 60
        assert [one["name"] for one in after["runs"]] == ["long"]
        assert after["runs"][0]["total"] == 50


def test_the_dashboard_ends_with_the_master() -> None:
    with Sink() as program:
        pid = program.dashboard()
        with socket.create_connection(("127.0.0.1", program.http)) as viewer:
            viewer.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert viewer.recv(99).startswith(b"HTTP/1.1 200 OK\r\n")
            os.kill(program.pid, signal.SIGKILL)
            wait_for(lambda: title(pid) == "", "the dashboard ends too")
