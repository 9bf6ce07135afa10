"""Conf files: syntax, mistakes, files of 1.x, and who may write to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blackhole import listeners
from blackhole.options import parse
from blackhole.settings import Listener, OperatorError
from tests.option_samples import (
    LINES,
    WriteConf,
    check_error,
    load,
    refusal,
)


def test_a_conf_file_from_the_documents_of_1x_still_loads(write_conf: WriteConf) -> None:
    path = write_conf(
        'host="0.0.0.0"\nport=25\npid="/tmp/blackhole.io"\nmode="offline"\n'
        'ssl_key="/etc/ssl/private/blackhole.io.key"\nssl_cert="/etc/ssl/certs/blackhole.io.crt"\n'
        "message_size_limit=1024000\n"
    )
    got = load(path)
    assert got.listeners == (
        Listener("0.0.0.0", 25, mode="offline"),
        Listener("0.0.0.0", 465, True, "offline"),
    )
    assert (got.pid, got.message_size_limit) == ("/tmp/blackhole.io", 1024000)
    assert (got.ssl_key, got.ssl_cert) == (
        "/etc/ssl/private/blackhole.io.key",
        "/etc/ssl/certs/blackhole.io.crt",
    )


def test_a_conf_file_of_1x_written_as_python_still_loads(write_conf: WriteConf) -> None:
    path = write_conf(
        "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n\n"
        "host = '127.0.0.1'       # not for the world\nport = 2525\nuser = 'mail'\ngroup = \"mail\"\n"
        "debug = True\nssl = False\nssl_cert = None\nssl_key = None\nworkers = None\ndelay = 5\n"
        "log = '/var/log/a #1.log'# a comment\nssl_ca_certs_dir = '/etc/ssl/certs/'\n"
    )
    got = parse(["--conf", str(path)], {})
    assert got.settings.listeners == (Listener("127.0.0.1", 2525, delay=(5.0, 5.0)),)
    assert (got.settings.user, got.settings.group, got.settings.debug) == ("mail", "mail", True)
    assert (got.settings.log, got.settings.origins["workers"]) == ("/var/log/a #1.log", "default")
    assert got.warnings == (
        f"{path}:8: debug: every line of every session is logged,"
        " which is slow and fills disks with private data",
        f"{path}:15: ssl_ca_certs_dir: ignored, because the authorities of clients are in the file client_ca;"
        " remove it",
    )


def test_a_conf_file_may_have_crlf_line_ends_and_a_byte_order_mark(write_conf: WriteConf) -> None:
    assert load(write_conf(b"\xef\xbb\xbfport = 26\r\nmode = bounce\r\n")).listeners == (
        Listener("0.0.0.0", 26, mode="bounce"),
    )


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("log = /a#b", "/a#b"),
        ("log = /a #b", "/a"),
        ("log=#b", ""),
        ("log = ", ""),
        ("log =", ""),
        ("log = ''", ""),
        ("log = '/a # b' # c", "/a # b"),
        ('log = "/it\'s"', "/it's"),
        ("log = /it's", "/it's"),
        ("log = /a = b", "/a = b"),
        ("log = /50%(x)s${y}", "/50%(x)s${y}"),
        ("   log = /a", "/a"),
        ("\tlog\t=\t/a b\t# c", "/a b"),
        ("log = 'None'", str(Path.cwd() / "None")),
        ("log = None", ""),
    ],
)
def test_quotes_and_comments_in_a_conf_file(line: str, value: str, write_conf: WriteConf) -> None:
    assert load(write_conf(f"port = 1\n{line}\nuser = mail\n")).log == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = 25\nprot = 26", "2: prot: unknown option (did you mean port?)"),
        (
            "max_message_size = 512000",
            "1: max_message_size: an option of Blackhole 2.x; write message_size_limit = SIZE",
        ),
        ("tls_listen=:465", "1: tls_listen: an option of Blackhole 2.x; write listen = ADDRESS:PORT,tls"),
        (
            "tls_dhparams = d.pem",
            "1: tls_dhparams: an option of Blackhole 2.x; remove the line, OpenSSL has its own parameters",
        ),
        (
            "listen = 10.0.0.1:25, :::25",
            "1: listen: expected ADDRESS:PORT|unix:PATH[,SETTING]..., and a blank without a comma between two"
            " listeners, not '10.0.0.1:25,'",
        ),
        ("\n\nxyzzy = 1", "3: xyzzy: unknown option"),
        ("port = 25\n\nport = 25", "3: port: already set at FILE:1; remove one of the two"),
        (
            "message_size_limit=1\nmessage-size-limit=2",
            "2: message_size_limit: already set at FILE:1; remove one of the two",
        ),
        ("port = x", "1: port: expected a whole number from 0 to 65535, not 'x'"),
        ("port =", "1: port: expected a whole number from 0 to 65535, not ''"),
        ("listen = :25\nlisten = :x", None),
        ("ssl = f", "1: ssl: expected yes or no, not 'f'"),
        ("listen =\n  :25\n  :26", "2: expected NAME = VALUE, not ':25'"),
        ("port = 25\n 26", "2: expected NAME = VALUE, not '26'"),
        ("[blackhole]\nport = 25", "1: expected [listener ADDRESS:PORT], not '[blackhole]'"),
        ("import os; os.system('true')", "1: expected NAME = VALUE, not \"import os; os.system('true')\""),
        ("port: 25", "1: expected NAME = VALUE, not 'port: 25'"),
        ("debug", "1: expected NAME = VALUE, not 'debug'"),
        ("= 25", "1: expected NAME = VALUE, not '= 25'"),
        ("log = 'a", '1: log: expected a value with matching quotes, not "\'a"'),
        ("log = \"a' # b", "1: log: expected a value with matching quotes, not '\"a\\' # b'"),
        ("log = 'a' 'b'", "1: log: expected a value with matching quotes, not \"'a' 'b'\""),
        ("conf = /x", "1: conf: a conf file cannot name another conf file; remove the line"),
        (b"port = 25\nuser = \xe9\n", "2: not UTF-8 text"),
        (b"\xff\xfep\0", "1: not UTF-8 text"),
        ("user = a\0b", "1: user: expected printable characters only, not 'a\\x00b'"),
        ("ssl_key = k", "1: ssl_key: a key without a certificate; set ssl_cert too"),
        ("listen = :1\nlisten = :1", "1: listen: 0.0.0.0:1 is used by two listeners; change one of them"),
    ],
)
def test_a_mistake_in_the_conf_file_is_named_with_its_line(
    text: str | bytes, message: str | None, write_conf: WriteConf
) -> None:
    path = write_conf(text)
    if message is None:
        message = f"2: listen: expected {listeners.ADDRESS}, not ':x'"
    assert refusal("--conf", str(path)) == (os.EX_CONFIG, f"{path}:{message.replace('FILE', str(path))}")


def test_a_mistake_in_the_conf_file_counts_even_if_the_command_line_overrides_it(
    write_conf: WriteConf,
) -> None:
    assert refusal("--conf", str(write_conf("port = x")), "--port", "25")[0] == os.EX_CONFIG


def test_a_conf_file_is_never_executed(write_conf: WriteConf, tmp_path: Path) -> None:
    made = tmp_path / "made"
    refusal("--conf", str(write_conf(f"port = __import__('os').mkdir('{made}')\n")))
    load(write_conf(f"user = $(mkdir {made}) `mkdir {made}`\n"))
    assert not made.exists()


def test_only_a_regular_file_can_be_a_conf_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, reason in (
        (tmp_path, "not a regular file"),
        (tmp_path / "fifo", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (tmp_path / "none", "No such file or directory"),
        (tmp_path / "none" / "none", "No such file or directory"),
        ("/dev/null/x", "Not a directory"),
        ("/" + 300 * "x", "File name too long"),
    ):
        assert refusal("--conf", str(path)) == (os.EX_CONFIG, f"--conf: {path}: {reason}")


def test_a_conf_file_without_read_permission_is_an_error(unprivileged: None) -> None:
    path = "/etc/shadow"
    if not os.path.exists(path):
        pytest.skip("this machine has no /etc/shadow")
    assert refusal("--conf", path) == (os.EX_CONFIG, f"--conf: {path}: Permission denied")


@settings(max_examples=400, deadline=None, database=None)
@given(lines=LINES, joint=st.sampled_from([b"\n", b"\r\n", b"\n  "]))
@example(lines=[b"log = 'a", b"x" * 10000, b"log = a" + b" " * 10000 + b"b"], joint=b"\n")
def test_any_conf_file_gives_settings_or_an_operator_error(
    lines: list[bytes], joint: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.conf"
    path.write_bytes(joint.join(lines))
    try:
        parse(["--conf", str(path)], {})
    except OperatorError as error:
        check_error(error)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(("mode", "owner"), [(0o646, (0, 0)), (0o664, (0, 65534)), (0o644, (65534, 0))])
def test_root_refuses_a_conf_file_that_another_user_can_write_to(
    write_conf: WriteConf, mode: int, owner: tuple[int, int]
) -> None:
    """Whoever can write to it decides which files root opens, creates and gives away."""
    path = write_conf("port = 2525\n")
    os.chown(path, *owner)
    path.chmod(mode)
    code, message = refusal("--conf", str(path))
    assert (code, message) == (
        os.EX_CONFIG,
        f"--conf: {path}: another user than root can write to it; chown it to root and chmod it go-w",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_accepts_a_conf_file_that_its_own_group_can_write_to(write_conf: WriteConf) -> None:
    path = write_conf("port = 2525\n")
    path.chmod(0o664)
    assert load(path).listeners[0].port == 2525


@pytest.mark.parametrize(
    "line",
    [
        "attempt_store redis://:hunter2@localhost",
        "attempts: redis://:hunter2@localhost",
        "redis://:hunter2@localhost",
        "Attempt-Store hunter2",
        'attempt_store = "redis://:hunter2@localhost',
        "attempt_store = redis://:hunter2@localhost'",
        'attempt_store = "redis://:hunter2"@localhost',
        "attempt_store = rediss//:hunter2@localhost",
        "mode = redis://:hunter2@localhost",
        "log = 'redis://:hunter2",
        "bob:hunter2",
        "password hunter2",
        "auth = 'any\nbob:hunter2'",
        "redis://:hunter2@localhost = x",
    ],
)
def test_error_in_a_line_with_a_password_does_not_repeat_it(write_conf: WriteConf, line: str) -> None:
    code, message = refusal("--conf", str(write_conf(f"{line}\n")))
    assert code == os.EX_CONFIG
    assert "expected " in message
    assert "hunter2" not in message


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o640, False), (0o604, True)])
def test_conf_file_with_a_password_that_every_user_can_read_is_remarked_on(
    write_conf: WriteConf, mode: int, warned: bool
) -> None:
    path = write_conf("attempt_store = redis://:hunter2@localhost\n")
    path.chmod(mode)
    warning = f"{path}: every user can read the password in it; chmod o-r {path}"
    assert parse(["--conf", str(path)], {}).warnings == ((warning,) if warned else ())
    path.write_text("attempt_store = redis://localhost\n")
    assert parse(["--conf", str(path)], {}).warnings == ()
