"""UNIX sockets: their files, the clients behind them, reloads, and sockets that systemd passes."""

from __future__ import annotations

import os
import pwd
import signal
import smtplib
import socket
import stat
import subprocess
from contextlib import closing, suppress
from pathlib import Path

import pytest

from blackhole.metrics.counters import clipped_before
from blackhole.net.acceptor import AddressInUseError
from blackhole.process import systemd, unix_sockets
from blackhole.settings import Listener, OperatorError
from blackhole.store.client_log import ClientLog
from tests.external_programs import output_of, requires
from tests.program import (
    SCRIPT,
    Program,
    as_root,
    environment,
    free_port,
    run,
    scenario_option,
    status,
    wait_for,
)

OTHER_USER = 54321
"""A uid that nobody has."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder that every user can enter: pytest's own are private."""
    for parent in (tmp_path, *tmp_path.parents[:2]):
        with suppress(PermissionError):
            parent.chmod(0o755)
    return tmp_path


def bind(path: Path, **values: object) -> tuple[socket.socket, unix_sockets.SocketFile]:
    return unix_sockets.bind(Listener("", 0, path=str(path), **values), 5, ())  # type: ignore[arg-type]


def leave_stale_socket(path: Path) -> None:
    """Leave what a killed server does: a file at which nobody listens."""
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))


# Files


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
def test_file_has_the_permissions_that_were_asked_for_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        listening, file = bind(tmp_path / "s", socket_mode=mode)
    finally:
        os.umask(before)
    with closing(listening):
        found = os.lstat(tmp_path / "s")
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == mode
        file.remove()
    assert os.listdir(tmp_path) == []


@as_root
def test_file_has_the_owner_and_the_group_that_were_asked_for(tmp_path: Path) -> None:
    listening, file = bind(tmp_path / "s", socket_user=str(OTHER_USER), socket_group="12345")
    listening.close()
    found = os.lstat(tmp_path / "s")
    assert (found.st_uid, found.st_gid) == (OTHER_USER, 12345)
    listening, again = unix_sockets.bind(Listener("", 0, path=str(tmp_path / "s")), 5, {OTHER_USER})
    listening.close()
    assert os.lstat(tmp_path / "s").st_uid == os.geteuid()
    assert again.inode == os.lstat(tmp_path / "s").st_ino
    file.remove()


def test_unknown_owner_is_an_error(tmp_path: Path) -> None:
    for name, code in (("socket_user", os.EX_NOUSER), ("socket_group", os.EX_NOUSER)):
        with pytest.raises(OperatorError, match=r"there is no (user|group) nobody-has-this") as caught:
            bind(tmp_path / "s", **{name: "nobody-has-this"})
        assert caught.value.code == code
    assert os.listdir(tmp_path) == []


def test_stale_file_of_this_user_is_replaced(tmp_path: Path) -> None:
    leave_stale_socket(tmp_path / "s")
    listening, _ = bind(tmp_path / "s")
    with closing(listening), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))


@as_root
def test_stale_file_of_another_user_is_not_replaced(tmp_path: Path) -> None:
    leave_stale_socket(tmp_path / "s")
    os.chown(tmp_path / "s", OTHER_USER, -1)
    with pytest.raises(OperatorError, match=rf"belongs to another user \(uid {OTHER_USER}\); remove it"):
        bind(tmp_path / "s")
    assert (tmp_path / "s").is_socket()


def test_socket_at_which_something_listens_is_not_replaced(tmp_path: Path) -> None:
    listening, _ = bind(tmp_path / "s")
    with closing(listening):
        for _ in range(7):  # more than fit into the queue of the other
            with pytest.raises(AddressInUseError, match="something else does; see `ss -lx`"):
                bind(tmp_path / "s")


@pytest.mark.parametrize("kind", ["file", "folder", "link", "datagram"])
def test_what_is_no_stream_socket_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with closing(datagrams):
        if kind == "datagram":
            datagrams.bind(str(path))
        elif kind == "link":
            leave_stale_socket(tmp_path / "t")
            path.symlink_to(tmp_path / "t")
        else:
            path.mkdir() if kind == "folder" else path.write_text("important")
        with pytest.raises(OperatorError, match="remove it, or choose another path") as caught:
            bind(path)
        assert caught.value.code == os.EX_CANTCREAT
    assert os.path.lexists(path)


def test_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="No such file or directory") as caught:
        bind(tmp_path / "missing" / "s")
    assert caught.value.code == os.EX_CANTCREAT


def test_file_that_another_server_has_put_there_since_is_not_removed(tmp_path: Path) -> None:
    listening, file = bind(tmp_path / "s")
    listening.close()
    os.rename(tmp_path / "s", tmp_path / "t")
    second, _ = bind(tmp_path / "s")
    second.close()
    file.remove()
    assert (tmp_path / "s").is_socket()


# Sockets of systemd


def test_inherited_socket_is_taken_by_the_listener_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening, _ = bind(tmp_path / "s")
    with closing(listening):
        monkeypatch.setattr(systemd, "LISTEN_FDS_START", os.dup(listening.fileno()))
        sockets = systemd.inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
        assert systemd.take(sockets, Listener("0.0.0.0", 25)) == []
        assert systemd.take(sockets, Listener("", 0, path="/other")) == []
        with pytest.raises(OperatorError, match=f"passed a socket for unix:{tmp_path}/s, but there is no"):
            systemd.reject_unclaimed(sockets)
        (taken,) = systemd.take(sockets, Listener("", 0, path=str(tmp_path / "s")))
        taken.close()


@requires("systemd-socket-activate")
def test_file_of_systemd_stays_when_the_program_ends(folder: Path) -> None:
    path = folder / "s"
    command = ["systemd-socket-activate", f"--listen={path}", "-E", "PYTHONPATH", *SCRIPT]
    options = [f"--listen=unix:{path},lmtp", "--workers=1", "--dashboard=off"]
    with subprocess.Popen(
        [*command, *options], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stderr is not None
            process.stderr.readline()
            assert greeting(path).startswith("220 ")
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert path.is_socket()
        finally:
            process.kill()


# The program


def greeting(path: Path) -> str:
    """Return the first line that a listener sends."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        with client.makefile(encoding="latin-1") as lines:
            return lines.readline()


def send(path: Path) -> None:
    """Send a message by LMTP."""
    with smtplib.LMTP(str(path)) as client:
        client.sendmail("ann@example.com", ["bob@example.com"], "Subject: hello\r\n\r\nhello\r\n")


def test_clients_of_a_unix_socket_are_served_and_shown_as_unix(folder: Path) -> None:
    rules = """
        [[rule]]
        client = "unix"
        phase = "VRFY"
        reply = "252 2.0.0 You are {client}"
        [[rule]]
        client = "192.0.2.0/24"
        phase = "NOOP"
        reply = "450 4.0.0 No"
    """
    path = folder / "s"
    with Program(
        f"--listen=unix:{path},lmtp,mode=0600 127.0.0.1:{free_port()}",
        scenario_option(folder, rules),
        "--show_clients",
        "--log_transactions",
        "--recent=10",
    ) as program:
        send(path)
        with smtplib.LMTP(str(path)) as client:
            assert client.verify("bob") == (252, b"2.0.0 You are unix")
            assert client.noop()[0] == 250
        program.wait_until_idle()
        assert [one.address for one in ClientLog.of(program.pid).clients()] == ["unix"]  # type: ignore[union-attr]
        snapshot = program.snapshot()
        assert snapshot.connections[clipped_before(f"unix:{path}")] == 2
        assert snapshot.messages["accepted"] == 1
        wait_for(lambda: "client=unix" in program.output() or "[unix]" in program.output(), "the log line")
        assert f"listening on unix:{path}, LMTP" in program.output()
        assert program.stop() == 0
    assert not path.exists()


@as_root
def test_workers_that_dropped_root_serve_a_socket_in_a_folder_of_root(folder: Path) -> None:
    path = folder / "s"
    options = [f"--listen=unix:{path},socket_user=nobody,mode=0660", "--user=nobody"]
    with Program(*options) as program:
        assert {status(pid)["Uid"].split()[0] for pid in program.workers()} != {"0"}
        assert os.lstat(path).st_uid == pwd.getpwnam("nobody").pw_uid
        assert greeting(path).startswith("220 ")
        program.process.kill()
        program.process.wait()
    with Program(*options) as program:  # replaces the file that the one before has left
        assert greeting(path).startswith("220 ")
        assert program.stop() == 0
    assert not path.exists()


def test_reload_opens_changes_and_removes_unix_sockets(folder: Path, tmp_path: Path) -> None:
    conf, first, second = tmp_path / "conf", folder / "1", folder / "2"
    conf.write_text(f"listen = unix:{first},mode=0600\n")
    with Program(f"--conf={conf}") as program:
        inode = os.lstat(first).st_ino
        conf.write_text(
            f"[listener unix:{first}]\nsocket_mode = 0640\nhostname = mx2.test\n[listener unix:{second}]\n"
        )
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: program.output().count("reloaded: listening on") == 2, "the reload")
        status_of_first = os.lstat(first)
        assert (stat.S_IMODE(status_of_first.st_mode), status_of_first.st_ino) == (0o640, inode)
        wait_for(lambda: greeting(first) == "220 mx2.test ESMTP Blackhole\n", "the new settings")
        assert greeting(second).startswith("220 ")
        conf.write_text(f"listen = unix:{second}\n")
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: not first.exists(), "the file is removed")
        assert greeting(second).startswith("220 ")
        conf.write_text(f"listen = unix:{second} unix:{tmp_path}\n")  # a folder: this fails
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reload failed" in program.output(), "the reload has failed")
        assert greeting(second).startswith("220 ")
        assert program.stop() == 0
    assert not second.exists()


def test_limits_count_all_clients_of_unix_sockets_as_one(folder: Path) -> None:
    path = folder / "s"
    options = (f"--listen=unix:{path}", "--client_connections=1", "--workers=1")
    for more, answer in ((["--trusted=none"], "421 4.7.0 Too many connections from"), ([], "220 ")):
        with Program(*options, *more), socket.socket(socket.AF_UNIX) as first:
            first.settimeout(20)
            first.connect(str(path))
            assert first.recv(3) == b"220"
            assert greeting(path).startswith(answer)


def test_health_check_connects_to_a_unix_socket(folder: Path) -> None:
    with Program(f"--listen=unix:{folder}/s"):
        done = run(f"--listen=unix:{folder}/s", "check")
        assert (done.returncode, done.stdout[:4]) == (0, "220 "), done.stderr


def test_start_that_fails_leaves_no_file(folder: Path) -> None:
    done = run(f"--listen=unix:{folder}/s unix:{folder}", "--dashboard=off")
    assert done.returncode == os.EX_CANTCREAT
    assert os.listdir(folder) == []


@requires("swaks")
def test_swaks_sends_over_a_unix_socket(folder: Path) -> None:
    with Program(f"--listen=unix:{folder}/s") as program:
        message = ("--from", "ann@example.com", "--to", "bob@example.com", "--helo", "client.test")
        output_of("swaks", "--socket", f"{folder}/s", *message)
        wait_for(lambda: program.snapshot().messages["accepted"] == 1, "the message is counted")
