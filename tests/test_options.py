"""Every option from the command line, the environment and the conf file, and the texts made of the table."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blackhole import __version__, hostname, usage, values
from blackhole.option_table import OPTIONS, Option
from blackhole.options import ACTIONS, EXPLAIN_OPTIONS, REQUESTS, Invocation, parse
from blackhole.settings import CLIENT_LIMITS, MODES, Listener, OperatorError, Settings
from blackhole.usage import EXAMPLES, SIGNALS

ROOT = Path(__file__).parent.parent
CERT = {"BLACKHOLE_SSL_CERT": "/etc/ssl/mx.pem"}
PLAIN = Listener("0.0.0.0", 25)

SAMPLES = {
    "host": "127.0.0.1",
    "port": "2525",
    "listen": "127.0.0.1:2526,mode=bounce,delay=1,5 [::1]:2527",
    "backlog": "16",
    "proxy_from": "192.0.2.0/24 2001:db8::/32",
    "proxy_timeout": "1.5",
    "mode": "random",
    "delay": "0.25,3",
    "strict": "yes",
    "hostname": "mx.example.com",
    "message_size_limit": "0",
    "scenario": "/etc/outage.toml profile:flaky",
    "attempt_store": "rediss://192.0.2.9:6380/1?prefix=sink&timeout=0.25&ca=/etc/ssl/ca.pem",
    "bare_newline": "reject",
    "message_directives": "no",
    "auth": "/etc/users",
    "auth_plaintext": "yes",
    "timeout": "2.5",
    "ssl": "no",
    "ssl_port": "4650",
    "ssl_cert": "/etc/ssl/mx.pem",
    "ssl_key": "/etc/ssl/mx.key",
    "ssl_ca_certs_dir": "/etc/ssl/certs",
    "max_connections": "100",
    "write_timeout": "7",
    "tls_timeout": "8",
    "stress_timeout": "0",
    "public": "yes",
    "trusted": "192.0.2.1/32",
    "client_connections": "5",
    "client_connection_rate": "6",
    "client_message_rate": "7",
    "client_recipient_rate": "8",
    "client_tls_rate": "9",
    "client_byte_rate": "1000000",
    "soft_errors": "1",
    "max_errors": "2",
    "max_junk": "3",
    "max_recipients": "4",
    "max_messages": "5",
    "min_data_rate": "6",
    "session_timeout": "7.5",
    "workers": "7",
    "user": "mail",
    "group": "mail",
    "pid": "/run/sink.pid",
    "drain_timeout": "0",
    "conf": "/dev/null",
    "log": "/var/log/sink.log",
    "debug": "yes",
    "dashboard": "[::1]:8026,name=sink.example.com",
    "show_clients": "yes",
    "progress": "yes",
    "format": "junit",
    "json": "yes",
    "fail_on": "should",
}
"""A value of every option that is not its default, as --print-config would write it."""

ROWS = [pytest.param(option, id=option.name) for option in OPTIONS]
CONF_ROWS = [pytest.param(option, id=option.name) for option in OPTIONS if option.name != "conf"]


Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
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


def read(*argv: str, **environ: str) -> Settings:
    return parse(argv, environ).settings


def load(path: Path, *argv: str, **environ: str) -> Settings:
    return read("--conf", str(path), *argv, **environ)


def refusal(*argv: str, **environ: str) -> tuple[int, str]:
    with pytest.raises(OperatorError) as caught:
        parse(argv, environ)
    return caught.value.code, str(caught.value)


# Every option, from every source


def test_every_option_has_a_sample_value_other_than_its_default() -> None:
    assert list(SAMPLES) == [option.name for option in OPTIONS]
    assert [option.name for option in OPTIONS if option.default == SAMPLES[option.name]] == []


@pytest.mark.parametrize("option", CONF_ROWS)
@pytest.mark.parametrize("form", ["--{} value", "--{}=value"])
def test_an_option_is_read_from_the_command_line(option: Option, form: str) -> None:
    for name in {option.name, option.name.replace("_", "-")}:
        joined = form.format(name).replace("value", SAMPLES[option.name])
        got = read(*(joined.split(" ", 1) if " value" in form else [joined]), **CERT)
        assert got.texts[option.name] == SAMPLES[option.name]
        assert got.origins[option.name].split(",")[0] == "command line"


@pytest.mark.parametrize("option", CONF_ROWS)
def test_an_option_is_read_from_the_environment(option: Option) -> None:
    got = read(**CERT | {option.variable: SAMPLES[option.name]})
    assert got.texts[option.name] == SAMPLES[option.name]
    assert got.origins[option.name] == f"environment BLACKHOLE_{option.name.upper()}"


@pytest.mark.parametrize("option", CONF_ROWS)
def test_an_option_is_read_from_the_conf_file(option: Option, write: Write) -> None:
    for name in {option.name, option.name.replace("_", "-"), option.name.upper()}:
        for value in (SAMPLES[option.name], f'"{SAMPLES[option.name]}"', f"'{SAMPLES[option.name]}'"):
            path = write(f"# a comment\n\nssl_cert = /etc/ssl/mx.pem\n{name} = {value}  # another\n")
            if option.name == "ssl_cert":
                path = write(f"# a comment\n\n\n{name} = {value}  # another\n")
            got = load(path)
            assert got.texts[option.name] == SAMPLES[option.name]
            assert got.origins[option.name] == f"conf {path}:4"


@pytest.mark.parametrize("option", ROWS)
def test_giving_the_default_of_an_option_changes_nothing(option: Option) -> None:
    if option.name != "conf":
        assert read(f"--{option.name}={option.default}") == read()


@pytest.mark.parametrize("option", CONF_ROWS)
def test_the_value_of_an_option_reaches_the_settings(option: Option, write: Write) -> None:
    """As a field of the same name, or as a part of the listeners."""
    path = write(f"{option.name} = {SAMPLES[option.name]}\n")
    changed = load(path, **({} if option.name == "ssl_cert" else CERT))
    plain = read(**({} if option.name == "ssl_cert" else CERT))
    if option.name in {field.name for field in fields(Settings)}:
        assert getattr(changed, option.name) != getattr(plain, option.name)
    elif option.name != "ssl_ca_certs_dir":
        assert changed.listeners != plain.listeners


def test_options_and_settings_have_the_same_defaults() -> None:
    assert read() == replace(Settings(), workers=values.available_cpus(), hostname=hostname.own_hostname())


@pytest.mark.parametrize(
    ("alias", "name"), [(alias, option.name) for option in OPTIONS for alias in option.aliases]
)
def test_an_earlier_name_of_an_option_is_accepted_everywhere(alias: str, name: str, write: Write) -> None:
    sample = SAMPLES[name]
    variable = f"BLACKHOLE_{alias.upper()}"
    path = write(f"{alias} = {sample}\n")
    assert read(f"--{alias}", sample).texts[name] == sample
    assert read(f"--{alias.replace('_', '-')}={sample}").origins[name] == "command line"
    assert read(**{variable: sample}).texts[name] == sample
    assert read(**{variable: sample}).origins[name] == f"environment {variable}"
    assert load(path).texts[name] == sample
    assert load(path).origins[name] == f"conf {path}:1"


def test_the_aliases_are_the_three_names_that_changed() -> None:
    assert {option.aliases: option.name for option in OPTIONS if option.aliases} == {
        ("attempts",): "attempt_store",
        ("dynamic_switch",): "message_directives",
        ("http",): "dashboard",
    }


def test_the_name_of_an_option_overrides_its_alias_in_the_environment() -> None:
    both = {"BLACKHOLE_HTTP": "off", "BLACKHOLE_DASHBOARD": "127.0.0.1:9000"}
    for names in (both, dict(reversed(both.items()))):
        assert read(**names).texts["dashboard"] == "127.0.0.1:9000"


def test_an_alias_and_the_name_cannot_both_stand_in_a_conf_file(write: Write) -> None:
    path = write("http = off\ndashboard = off\n")
    assert refusal("--conf", str(path)) == (
        os.EX_CONFIG,
        f"{path}:2: dashboard: already set at {path}:1; remove one of the two",
    )


# Precedence


def test_the_command_line_overrides_the_environment_which_overrides_the_conf_file(write: Write) -> None:
    path = write("port = 1\nmode = bounce\nuser = conf\n")
    got = load(path, "--port", "3", BLACKHOLE_PORT="2", BLACKHOLE_MODE="random")
    assert (got.listeners, got.user) == ((Listener("0.0.0.0", 3, mode="random"),), "conf")
    assert {name: got.origins[name] for name in ("port", "mode", "user", "conf", "log")} == {
        "port": "command line",
        "mode": "environment BLACKHOLE_MODE",
        "user": f"conf {path}:3",
        "conf": "command line",
        "log": "default",
    }


def test_the_environment_can_name_the_conf_file(write: Write) -> None:
    path = write("port = 1\n")
    assert read(BLACKHOLE_CONF=str(path)).listeners[0].port == 1


def test_listeners_from_the_command_line_replace_those_of_the_conf_file(write: Write) -> None:
    path = write("listen = :1\nlisten = :2\n")
    assert [one.port for one in load(path).listeners] == [1, 2]
    assert [one.port for one in load(path, "--listen", ":3").listeners] == [3]


def test_an_empty_environment_variable_counts_as_unset(write: Write) -> None:
    path = write("user = conf\n")
    got = load(path, BLACKHOLE_USER="", BLACKHOLE_PORT="")
    assert (got.user, got.listeners) == ("conf", (PLAIN,))
    assert load(path, "--user=").user == ""


def test_the_last_of_several_equal_options_wins() -> None:
    assert read("--port=1", "--port=2").listeners[0].port == 2
    assert read("--strict", "--strict=no").strict is False


# The command line


@pytest.mark.parametrize(
    ("argv", "action"),
    [
        ("", "run"),
        ("--daemon", "start"),
        ("start --daemon", "start"),
        ("-- start", "start"),
        *((f"--port 26 {action}", action) for action in ACTIONS),
        *((f"{action} --port 26", action) for action in ACTIONS),
    ],
)
def test_an_action_may_come_before_or_after_the_options(argv: str, action: str) -> None:
    got = parse(argv.split(), {})
    assert (got.action, got.request) == (action, "")
    assert got.settings.listeners[0].port == (26 if "--port" in argv else 25)


@pytest.mark.parametrize("argv", ["-- start", "-h --", "--debug --", "--"])
def test_two_dashes_end_the_options(argv: str) -> None:
    assert isinstance(parse(argv.split(), {}), Invocation)


@pytest.mark.parametrize(
    ("argv", "strict", "action"),
    [
        ("--strict", True, "run"),
        ("--strict start", True, "start"),
        ("start --strict", True, "start"),
        ("--strict yes start", True, "start"),
        ("--strict no", False, "run"),
        ("--strict=off stop", False, "stop"),
        ("--strict --port 1", True, "run"),
    ],
)
def test_a_switch_without_a_value_means_yes(argv: str, strict: bool, action: str) -> None:
    got = parse(argv.split(), {})
    assert (got.settings.strict, got.action) == (strict, action)


@pytest.mark.parametrize("word", ["yes", "true", "on", "1", "no", "false", "off", "0"])
def test_a_switch_accepts_every_word_for_yes_and_no(word: str, write: Write) -> None:
    wanted = word in ("yes", "true", "on", "1")
    for spelling in (word, word.upper(), word.title()):
        assert read("--strict", spelling).strict is wanted
        assert load(write(f"strict={spelling}")).strict is wanted


@pytest.mark.parametrize(
    ("flag", "wanted"), [(flag, wanted) for wanted, (flags, _) in REQUESTS.items() for flag in flags]
)
def test_a_request_has_several_flags_and_spellings(flag: str, wanted: str) -> None:
    assert parse([flag], {}).request == wanted
    assert parse([flag[:2] + flag[2:].replace("-", "_"), "start"], {}).request == wanted


def test_help_and_version_ignore_all_other_mistakes(write: Write) -> None:
    path = write("port = x\n")
    for flag, wanted in (("--help", "help"), ("-V", "version")):
        argv = [flag, "--prot", "--port=x", "--conf", str(path)]
        assert parse(argv, {"BLACKHOLE_PORT": "x"}).request == wanted
    assert parse(["-t", "--print-config", "-v", "-h"], {}).request == "help"


# Listeners


@pytest.mark.parametrize(
    ("argv", "listeners"),
    [
        ("", [PLAIN]),
        ("--host ::1 --port 26", [Listener("::1", 26)]),
        ("--host [::1]", [Listener("::1", 25)]),
        ("--host fe80::1%eth0", [Listener("fe80::1%eth0", 25)]),
        (
            "--host localhost --mode bounce --delay 2",
            [Listener("localhost", 25, False, "bounce", (2.0, 2.0))],
        ),
        ("--listen :26", [Listener("0.0.0.0", 26)]),
        ("--listen 127.0.0.1:26 --listen [::1]:27", [Listener("127.0.0.1", 26), Listener("::1", 27)]),
        ("--listen :0 --listen :0", [Listener("0.0.0.0", 0), Listener("0.0.0.0", 0)]),
        ("--listen :26 --port 25", [PLAIN, Listener("0.0.0.0", 26)]),
        ("--listen :26 --host ::", [Listener("::", 25), Listener("0.0.0.0", 26)]),
        (
            "--mode bounce --delay 1,2 --listen :1 --listen :2,mode=Accept --listen :3,delay=.5,3,mode=random"
            " --listen :4,delay=0",
            [
                Listener("0.0.0.0", 1, False, "bounce", (1.0, 2.0)),
                Listener("0.0.0.0", 2, False, "accept", (1.0, 2.0)),
                Listener("0.0.0.0", 3, False, "random", (0.5, 3.0)),
                Listener("0.0.0.0", 4, False, "bounce", None),
            ],
        ),
        ("--ssl_port 26", [PLAIN]),
        ("--ssl_cert c", [PLAIN, Listener("0.0.0.0", 465, True)]),
        (
            "--ssl_cert c --ssl_port 1 --host ::1 --mode offline",
            [Listener("::1", 25, mode="offline"), Listener("::1", 1, True, "offline")],
        ),
        ("--ssl_cert c --ssl no", [PLAIN]),
        ("--ssl_cert c --listen :26", [Listener("0.0.0.0", 26)]),
        ("--ssl_cert c --listen :26,tls", [Listener("0.0.0.0", 26, True)]),
        (
            "--ssl_cert c --listen :26 --ssl_port 465",
            [Listener("0.0.0.0", 465, True), Listener("0.0.0.0", 26)],
        ),
        (
            "--ssl_cert c --listen :26 --port 25",
            [PLAIN, Listener("0.0.0.0", 465, True), Listener("0.0.0.0", 26)],
        ),
    ],
)
def test_options_that_add_up_to_listeners(argv: str, listeners: list[Listener]) -> None:
    assert list(read(*argv.split()).listeners) == listeners


def test_one_value_of_listen_may_hold_several_listeners(write: Write) -> None:
    wanted = (Listener("0.0.0.0", 1, mode="bounce"), Listener("::1", 2))
    path = write("listen = :1,mode=bounce\nlisten = [::1]:2\n")
    assert load(path).listeners == wanted
    assert load(path).origins["listen"] == f"conf {path}:1,2"
    assert load(write("listen = :1,mode=bounce [::1]:2\n")).listeners == wanted
    assert read(BLACKHOLE_LISTEN=":1,mode=bounce\n[::1]:2\n").listeners == wanted


@pytest.mark.parametrize(
    ("text", "delay"),
    [("0", None), ("0,0", None), ("2", (2.0, 2.0)), ("0,1.5", (0.0, 1.5)), (" .5 , 3600 ", (0.5, 3600.0))],
)
def test_a_delay_is_a_number_or_a_range(text: str, delay: tuple[float, float] | None) -> None:
    assert read("--delay", text).listeners[0].delay == delay


# TLS


def test_without_ssl_key_the_key_is_read_from_ssl_cert() -> None:
    got = read("--ssl_cert", "/c.pem")
    assert (got.ssl_cert, got.ssl_key) == ("/c.pem", "")


def test_ssl_no_ignores_certificate_and_key() -> None:
    got = read("--ssl=no", "--ssl_cert=/c.pem", "--ssl_key=/k.pem")
    assert (got.ssl_cert, got.ssl_key) == ("", "")
    assert read("--ssl=no", "--ssl_key=/k.pem").ssl_key == ""


# Paths and host name


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    got = read("--log", "sub/../x.log", "--pid", "~/x.pid", "--ssl_cert", "c.pem")
    assert (got.log, got.pid, got.ssl_cert) == (
        f"{tmp_path}/x.log",
        "/home/ann/x.pid",
        f"{tmp_path}/c.pem",
    )


def test_a_relative_path_in_a_deleted_directory_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert refusal("--log", "x") == (
        os.EX_USAGE,
        "--log: expected an absolute path because the current directory is deleted, not 'x'",
    )


@pytest.mark.parametrize("action", ACTIONS)
def test_default_pidfile_and_log_of_a_user_without_root(
    action: str, unprivileged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    for environ, pid, log in (
        ({}, "/home/ann/.blackhole.pid", "/home/ann/.local/state/blackhole.log"),
        (
            {"XDG_RUNTIME_DIR": "/run/user/7", "XDG_STATE_HOME": "/s"},
            "/run/user/7/blackhole.pid",
            "/s/blackhole.log",
        ),
        ({"XDG_RUNTIME_DIR": "run"}, "/home/ann/.blackhole.pid", "/home/ann/.local/state/blackhole.log"),
    ):
        got = parse([action], environ).settings
        assert got.pid == ("" if action == "run" else pid)
        assert got.log == (log if action in ("start", "restart") else "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has these defaults")
def test_default_pidfile_and_log_of_root() -> None:
    got = parse(["start"], {"XDG_RUNTIME_DIR": "/run/user/0"}).settings
    assert (got.pid, got.log) == ("/run/blackhole.pid", "/var/log/blackhole.log")


def test_a_server_in_the_foreground_has_a_pidfile_only_if_it_is_given_one() -> None:
    assert read("--pid", "/x.pid").pid == "/x.pid"


HOST = socket.gethostname()


@pytest.mark.parametrize(
    ("mailname", "hosts", "name"),
    [
        ("mx.example.org\nother\n", "", "mx.example.org"),
        ("\n# ours\nmx.example.org # yes\n", "", "mx.example.org"),
        ("not a name\n", f"10.0.0.1 {HOST}.example.org {HOST}\n", f"{HOST}.example.org"),
        (None, f"127.0.0.1 localhost\n\n::1\n10.0.0.1 a.example.org a {HOST}\n", "a.example.org"),
        (None, f"127.0.0.1 localhost.localdomain localhost {HOST}\n", HOST),
        (None, f"127.0.0.1 {HOST}\n10.0.0.1 other.example.org other\n", HOST),
        (None, f"#10.0.0.1 a.example.org {HOST}\n10.0.0.2 b\xff.example.org {HOST}\n", "localhost"),
        (None, None, HOST),
        ("", "", HOST),
    ],
)
def test_the_host_name_comes_from_mailname_then_from_hosts_then_from_the_kernel(
    tmp_path: Path, mailname: str | None, hosts: str | None, name: str
) -> None:
    for file, text in (("mailname", mailname), ("hosts", hosts)):
        if text is not None:
            (tmp_path / file).write_bytes(text.encode("latin-1"))
    assert hostname.own_hostname(str(tmp_path / "mailname"), str(tmp_path / "hosts")) == name


# Conf files


def test_a_conf_file_from_the_documents_of_1x_still_loads(write: Write) -> None:
    path = write(
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


def test_a_conf_file_of_1x_written_as_python_still_loads(write: Write) -> None:
    path = write(
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
        f"{path}:15: ssl_ca_certs_dir: ignored, because Blackhole asks no client for a certificate;"
        " remove it",
    )


def test_a_conf_file_may_have_crlf_line_ends_and_a_byte_order_mark(write: Write) -> None:
    assert load(write(b"\xef\xbb\xbfport = 26\r\nmode = bounce\r\n")).listeners == (
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
def test_quotes_and_comments_in_a_conf_file(line: str, value: str, write: Write) -> None:
    assert load(write(f"port = 1\n{line}\nuser = mail\n")).log == value


# Error messages


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--prot 25", "--prot: unknown option (did you mean --port?)"),
        ("--por 25", "--por: unknown option (did you mean --port?)"),
        (
            "--message-sise-limit=1",
            "--message-sise-limit: unknown option (did you mean --message_size_limit?)",
        ),
        ("-port=25", "-port: unknown option (did you mean --port?)"),
        ("--verison", "--verison: unknown option (did you mean --version?)"),
        ("--xyzzy", "--xyzzy: unknown option"),
        ("-x", "-x: unknown option"),
        ("-1", "-1: unknown option"),
        ("-", "-: unknown option"),
        (
            "start -- --port",
            "'--port': unknown action; the actions are run, start, stop, restart, reload, status, report,"
            " top, explain (did you mean report?)",
        ),
        ("--port", "--port: expected one argument"),
        ("--user=--", "--user: expected a value, not '--'"),
        ("--port -- 25", "--port: expected one argument"),
        ("--port --debug", "--port: expected one argument"),
        ("--help=now", "-h/--help: ignored explicit argument 'now'"),
        ("--port=x", "--port: expected a whole number from 0 to 65535, not 'x'"),
        ("--port=", "--port: expected a whole number from 0 to 65535, not ''"),
        ("--port=65536", "--port: expected a whole number from 0 to 65535, not '65536'"),
        ("--port=-1", "--port: expected a whole number from 0 to 65535, not '-1'"),
        ("--port=٢٥", "--port: expected a whole number from 0 to 65535, not '٢٥'"),
        ("--ssl-port=1_0", "--ssl_port: expected a whole number from 0 to 65535, not '1_0'"),
        ("--workers=0", "--workers: expected auto or a whole number from 1 to 1024, not '0'"),
        ("--backlog=0", "--backlog: expected a whole number from 1 to 65535, not '0'"),
        ("--timeout=0", "--timeout: expected seconds from 0.1 to 86400, not '0'"),
        ("--timeout=inf", "--timeout: expected seconds from 0.1 to 86400, not 'inf'"),
        ("--drain_timeout=1e9", "--drain_timeout: expected seconds from 0 to 86400, not '1e9'"),
        ("--delay=3601", "--delay: expected SECONDS or MIN,MAX, from 0 to 3600, not '3601'"),
        ("--delay=1,", "--delay: expected SECONDS or MIN,MAX, from 0 to 3600, not '1,'"),
        ("--delay=2,1", "--delay: expected MIN,MAX with MIN not above MAX, not '2,1'"),
        (
            "--mode=acept",
            "--mode: expected one of accept, bounce, random, greylist, unavailable, offline, not 'acept'"
            " (did you mean accept?)",
        ),
        ("--debug=maybe", "--debug: expected yes or no, not 'maybe'"),
        ("--host=300.1.1.1", "--host: expected an IPv4 or IPv6 address or a host name, not '300.1.1.1'"),
        ("--host=::1::2", "--host: expected an IPv4 or IPv6 address or a host name, not '::1::2'"),
        ("--host=", "--host: expected an IPv4 or IPv6 address or a host name, not ''"),
        (
            "--hostname=a_b!",
            "--hostname: expected a host name of letters, digits, hyphens and dots, not 'a_b!'",
        ),
        ("--user=a\x07", "--user: expected printable characters only, not 'a\\x07'"),
        ("--log=/a\udcff", "--log: expected printable characters only, not '/a\\udcff'"),
        (
            "--listen=25",
            "--listen: expected ADDRESS:PORT[,tls][,proxy][,mode=MODE][,delay=SECONDS], an IPv6 address"
            " in brackets,"
            " not '25'",
        ),
        (
            "--listen=::1:25",
            "--listen: expected ADDRESS:PORT[,tls][,proxy][,mode=MODE][,delay=SECONDS], an IPv6 address"
            " in brackets,"
            " not '::1:25'",
        ),
        (
            "--listen=:25,ssl",
            "--listen: expected tls, proxy, mode=MODE or delay=SECONDS after the port, not 'ssl'",
        ),
        ("--listen=:25,delay=x", "--listen: expected SECONDS or MIN,MAX, from 0 to 3600, not 'x'"),
        ("--listen=:99999", "--listen: expected a whole number from 0 to 65535, not '99999'"),
        ("--listen=[::g]:25", "--listen: expected an IPv4 or IPv6 address or a host name, not '[::g]'"),
        ("--listen=:26,tls", "--listen: :26,tls: tls needs ssl_cert"),
        ("--listen=:26,tls --ssl_cert=c --ssl=no", "--listen: :26,tls: tls needs ssl = yes"),
        ("--listen=:26 --listen=:26", "--listen: 0.0.0.0:26 is used by two listeners; change one of them"),
        ("--listen=:25 --port=25", "--listen: 0.0.0.0:25 is used by two listeners; change one of them"),
        ("--ssl_cert=c --port=465", "--port: 0.0.0.0:465 is used by two listeners; change one of them"),
        ("--ssl_cert=c --ssl_port=25", "--ssl_port: 0.0.0.0:25 is used by two listeners; change one of them"),
        ("--ssl_key=k", "--ssl_key: a key without a certificate; set ssl_cert too"),
        (
            "strat",
            "'strat': unknown action; the actions are run, start, stop, restart, reload, status, report,"
            " top, explain (did you mean start?)",
        ),
        (
            "",
            "'': unknown action; the actions are run, start, stop, restart, reload, status, report,"
            " top, explain",
        ),
        ("start stop", "expected one action, not start and stop"),
        ("stop --daemon", "expected one action, not stop and start"),
        ("start -- stop", "expected one action, not start and stop"),
    ],
)
def test_a_mistake_on_the_command_line_is_named_with_its_option(argv: str, message: str) -> None:
    assert refusal(*argv.split(" ")) == (os.EX_USAGE, message)


def test_an_unprintable_or_long_option_name_is_quoted_in_the_error() -> None:
    assert refusal("--po\nrt=5") == (os.EX_USAGE, "'--po\\nrt': unknown option (did you mean --port?)")
    assert refusal("--" + "x" * 999)[1] == f"{('--' + 'x' * 58)!r}: unknown option"


def test_a_mistake_in_the_environment_is_named_with_its_variable() -> None:
    assert refusal(BLACKHOLE_PORT="x") == (
        os.EX_CONFIG,
        "environment BLACKHOLE_PORT: expected a whole number from 0 to 65535, not 'x'",
    )
    assert refusal("--port=1", BLACKHOLE_PORT="x")[0] == os.EX_CONFIG
    assert refusal(BLACKHOLE_CONF="/does/not/exist") == (
        os.EX_CONFIG,
        "environment BLACKHOLE_CONF: /does/not/exist: No such file or directory",
    )
    assert refusal("--port=465", BLACKHOLE_SSL_KEY="/k") == (
        os.EX_CONFIG,
        "environment BLACKHOLE_SSL_KEY: a key without a certificate; set ssl_cert too",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = 25\nprot = 26", "2: prot: unknown option (did you mean port?)"),
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
        ("[blackhole]\nport = 25", "1: expected NAME = VALUE, not '[blackhole]'"),
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
    text: str | bytes, message: str | None, write: Write
) -> None:
    path = write(text)
    if message is None:
        message = f"2: listen: expected {values.LISTEN}, an IPv6 address in brackets, not ':x'"
    assert refusal("--conf", str(path)) == (os.EX_CONFIG, f"{path}:{message.replace('FILE', str(path))}")


def test_a_mistake_in_the_conf_file_counts_even_if_the_command_line_overrides_it(write: Write) -> None:
    assert refusal("--conf", str(write("port = x")), "--port", "25")[0] == os.EX_CONFIG


def test_a_conf_file_is_never_executed(write: Write, tmp_path: Path) -> None:
    made = tmp_path / "made"
    refusal("--conf", str(write(f"port = __import__('os').mkdir('{made}')\n")))
    load(write(f"user = $(mkdir {made}) `mkdir {made}`\n"))
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


# Warnings


@pytest.mark.parametrize(
    ("argv", "environ", "warnings"),
    [
        ("", {}, []),
        ("--debug=no --ssl_ca_certs_dir=", {}, []),
        (
            "--debug",
            {},
            [
                "--debug: every line of every session is logged,"
                " which is slow and fills disks with private data"
            ],
        ),
        (
            "--ssl-ca-certs-dir=/etc",
            {},
            ["--ssl_ca_certs_dir: ignored, because Blackhole asks no client for a certificate; remove it"],
        ),
        ("--ssl=yes", {"SSL_PORT": "1"}, ["--ssl: no effect without ssl_cert"]),
        ("--ssl_port=1", {}, ["--ssl_port: no effect without ssl_cert"]),
        ("--ssl_port=1 --ssl=no", {}, []),
        (
            "",
            {"BLACKHOLE_WORKER": "4"},
            ["environment BLACKHOLE_WORKER: unknown option (did you mean workers?)"],
        ),
        (
            "",
            {"BLACKHOLE_PORT": "tcp://10.0.0.7:25"},
            [
                "environment BLACKHOLE_PORT: 'tcp://10.0.0.7:25' is ignored:"
                " Kubernetes sets it for a Service of that name"
            ],
        ),
        (
            "",
            {
                "BLACKHOLE_TEST_ALL": "1",
                "BLACKHOLE_SERVICE_HOST": "10.0.0.7",
                "BLACKHOLE_SERVICE_PORT": "25",
                "BLACKHOLE_PORT_25_TCP": "tcp://10.0.0.7:25",
                "BLACKHOLE_PORT_25_TCP_ADDR": "10.0.0.7",
                "BLACKHOLE_PORT_25_TCP_PORT": "25",
                "BLACKHOLE_PORT_25_TCP_PROTO": "tcp",
                "PORT": "x",
            },
            [],
        ),
    ],
)
def test_options_without_effect_and_mistyped_variables_give_a_warning(
    argv: str, environ: dict[str, str], warnings: list[str]
) -> None:
    got = parse(argv.split(), environ)
    assert list(got.warnings) == warnings
    assert got.settings.listeners[0].port == 25


# Help, sample conf file and --print-config


def test_help_fits_80_columns_and_lists_everything() -> None:
    text = usage.help_text()
    lines = text.splitlines()
    assert [line for line in lines if len(line) > 79 or line != line.rstrip()] == []
    for option in OPTIONS:
        assert f"  --{option.name} {option.metavar}".rstrip() in text
        assert option.help in " ".join(text.split())
        if option.default:
            assert f"[{option.default_note or option.default}" in " ".join(text.split())
        assert f"\n{option.group}:\n" in text
    for word, about in (ACTIONS | MODES | SIGNALS).items():
        assert f"\n  {word} " in text
        assert about in " ".join(text.split())
    for name, (value, about) in EXPLAIN_OPTIONS.items():
        assert f"\n  --{name} {value}" in text
        assert about in " ".join(text.split())
    for flags, about in REQUESTS.values():
        assert f"\n  {', '.join(flags)}" in text
        assert about in text
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("command", EXAMPLES)
def test_the_examples_in_help_are_valid(command: str, write: Write) -> None:
    program, *argv = shlex.split(command.replace("/etc/blackhole.conf", str(write(usage.sample_conf()))))
    assert program == "blackhole"
    assert parse(argv, {}).warnings == ()


def test_the_sample_conf_file_is_made_from_the_option_table() -> None:
    sample = (ROOT / "blackhole.conf.sample").read_text()
    assert sample == usage.sample_conf(), (
        "python -c 'from blackhole import options; print(usage.sample_conf(), end=\"\")'"
        " > blackhole.conf.sample writes it anew"
    )
    assert [line for line in sample.splitlines() if len(line) > 88] == []


def test_the_sample_conf_file_holds_the_defaults(write: Write) -> None:
    lines = usage.sample_conf().splitlines()
    settings = [line[1:] for line in lines if line[:1] == "#" and line[1:2].isalpha()]
    assert [line.split(" =")[0] for line in settings] == [row.name for row in OPTIONS if row.name != "conf"]
    assert load(write("\n".join(lines))) == load(write("\n".join(settings))) == read()


@pytest.mark.parametrize(
    "argv",
    [
        "",
        "start",
        "--listen :26,mode=bounce,delay=1,5 --listen [::1]:0",
        "--listen :26 --port 25",
        "--listen :26 --ssl_cert c --ssl_port 4650",
        "--listen :26,tls --ssl_cert c",
        "--ssl_cert c --ssl_key k --host ::1 --delay .25",
        "--ssl_cert c --ssl no --listen :26 --ssl_port 1",
        "--strict --debug --workers 3 --timeout 0.123456 --message_size_limit 0 --user None --group '",
    ],
)
def test_print_config_is_a_conf_file_for_the_same_settings(argv: str, write: Write) -> None:
    wanted = parse(argv.split(), {})
    path = write(usage.print_config(wanted.settings))
    got = parse([wanted.action, "--conf", str(path)], {})
    assert got.settings == wanted.settings
    assert not [warning for warning in got.warnings if "effect" in warning]


def test_print_config_quotes_values_that_need_it(write: Write) -> None:
    got = read("--log", "/a #'b", "--user", '"x', "--group", "None", "--pid", "/#")
    assert load(write(usage.print_config(got))) == got


def test_print_config_shows_where_each_value_comes_from(write: Write) -> None:
    path = write("mode = bounce\n")
    text = usage.print_config(load(path, "--listen", ":26", BLACKHOLE_DELAY="1,2.50"))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for wanted in (
        f"# Blackhole {__version__} would listen on",
        "# 0.0.0.0:26, mode bounce, delay 1,2.5",
        "#host = 0.0.0.0 # default, not used",
        "#port = 25 # default, not used",
        "listen = :26 # command line",
        f"mode = bounce # conf {path}:1",
        "delay = 1,2.5 # environment BLACKHOLE_DELAY",
        "strict = no # default",
        f"workers = {values.available_cpus()} # default",
        f"#conf = {path} # command line",
    ):
        assert wanted in lines
    assert "TLS" in usage.print_config(read("--ssl_cert", "c")).splitlines()[2]
    assert "port = 25" in usage.print_config(Settings())


def test_version_lists_the_parts_a_bug_report_needs() -> None:
    import ssl

    import tornado

    blackhole, of_tornado, python, openssl = usage.version_text().splitlines()
    assert blackhole == f"Blackhole {__version__}"
    assert of_tornado == f"Tornado {tornado.version}"
    assert python.startswith(f"Python {'.'.join(map(str, sys.version_info[:3]))}")
    assert openssl == ssl.OPENSSL_VERSION


# Side effects and random input


def test_parsing_prints_nothing_and_imports_no_server_module(write: Write) -> None:
    script = (
        "import sys\nfrom blackhole import options, usage\n"
        "options.parse(sys.argv[1:], {'BLACKHOLE_PROT': '1'}); usage.help_text()\n"
        "sys.exit(' '.join({'tornado', 'ssl', 'asyncio', 'logging', 'difflib'} & sys.modules.keys()))"
    )
    argv = [sys.executable, "-c", script, "--debug", "--conf", str(write("port = 1"))]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "difflib\n", 1)


WORDS = st.sampled_from(
    [f"--{option.name}" for option in OPTIONS]
    + [f"--{name}={text}" for name, text in SAMPLES.items()]
    + [f"--{option.name.replace('_', '-')}=" for option in OPTIONS]
    + [flag for flags, _ in REQUESTS.values() for flag in flags]
    + [f"--{name}=x" for name in EXPLAIN_OPTIONS]
    + [
        *ACTIONS,
        *MODES,
        "--daemon",
        "--",
        "-",
        "",
        "yes",
        "0",
        "1,2",
        "-1",
        ":25",
        "[::1]:25,tls",
        "=",
        "--=",
    ]
)
TEXT = st.one_of(WORDS, st.text(st.characters(exclude_categories=[]), max_size=20))
LINES = st.lists(
    st.one_of(
        st.binary(max_size=20),
        TEXT.map(lambda text: text.encode(errors="surrogateescape" if text.isascii() else "replace")),
        st.tuples(st.sampled_from([option.name for option in OPTIONS]), TEXT).map(
            lambda pair: f"{pair[0]} = {pair[1]}".encode(errors="replace")
        ),
    ),
    max_size=4,
)


def check_error(error: OperatorError) -> None:
    """Assert that an error is one line that any terminal can show, with an exit code of sysexits.h."""
    assert str(error).isprintable()
    assert error.code in (os.EX_USAGE, os.EX_CONFIG)


@settings(max_examples=400, deadline=None, database=None)
@given(
    argv=st.lists(st.one_of(TEXT, TEXT.map(lambda text: f"--port={text}")), max_size=5),
    environ=st.dictionaries(
        st.one_of(
            st.sampled_from([option.variable for option in OPTIONS]),
            TEXT.map(lambda text: f"BLACKHOLE_{text}"),
        ),
        TEXT,
        max_size=3,
    ),
)
@example(argv=["--", "--"], environ={})
@example(argv=["--listen", ":25,\n"], environ={"BLACKHOLE_\n": "x", "BLACKHOLE_PORT": "tcp://\n"})
def test_any_command_line_and_environment_gives_settings_or_an_operator_error(
    argv: list[str], environ: dict[str, str]
) -> None:
    try:
        got = parse(argv, environ)
    except OperatorError as error:
        check_error(error)
    else:
        assert isinstance(got.settings, Settings)
        assert all(warning.isprintable() for warning in got.warnings)
        usage.print_config(got.settings)


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
    write: Write, mode: int, owner: tuple[int, int]
) -> None:
    """Whoever can write to it decides which files root opens, creates and gives away."""
    path = write("port = 2525\n")
    os.chown(path, *owner)
    path.chmod(mode)
    code, message = refusal("--conf", str(path))
    assert (code, message) == (
        os.EX_CONFIG,
        f"--conf: {path}: another user than root can write to it; chown it to root and chmod it go-w",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_accepts_a_conf_file_that_its_own_group_can_write_to(write: Write) -> None:
    path = write("port = 2525\n")
    path.chmod(0o664)
    assert load(path).listeners[0].port == 2525


# Limits


def test_public_turns_on_the_limits_per_client() -> None:
    """An option of its own overrides it."""
    off, on = read(), read("--public", "--max_errors=7", "--client_connections=0")
    rows = {option.name: option for option in OPTIONS if option.public_default}
    assert not off.limits_clients
    assert {name for name in rows if getattr(off, name)} == set()
    assert {name for name in rows if not getattr(on, name)} == {"client_connections"}
    assert on.max_errors == 7
    assert (on.origins["max_junk"], on.origins["max_errors"]) == ("public", "command line")
    assert on.client_connection_rate == int(rows["client_connection_rate"].public_default)
    assert set(rows) <= set(CLIENT_LIMITS)


def test_every_limit_per_client_is_off_by_default() -> None:
    defaults = {option.name: option.default for option in OPTIONS}
    assert {defaults[name] for name in CLIENT_LIMITS} == {"0"}


def test_clients_are_counted_only_for_limits_that_need_a_count() -> None:
    assert not read().counts_clients
    assert read("--max_errors=5").limits_clients
    assert not read("--max_errors=5").counts_clients
    assert read("--client_tls_rate=5").counts_clients


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("none", ()),
        ("", ()),
        ("192.0.2.1", ("192.0.2.1/32",)),
        ("192.0.2.0/24, 2001:db8::/32 ::1", ("192.0.2.0/24", "2001:db8::/32", "::1/128")),
    ],
)
def test_networks_are_separated_by_blanks_or_commas(text: str, networks: tuple[str, ...]) -> None:
    assert read(f"--trusted={text}").trusted == networks


@pytest.mark.parametrize("text", ["192.0.2.1/24", "mx.test", "192.0.2.0/33", "none none", "::/129"])
def test_a_mistyped_network_is_an_error(text: str) -> None:
    code, message = refusal(f"--proxy_from={text}")
    assert code == os.EX_USAGE
    assert message.startswith("--proxy_from: expected networks such as 192.0.2.0/24")


def test_a_listener_with_proxy_needs_trusted_networks() -> None:
    assert refusal("--listen=:25,proxy") == (
        os.EX_USAGE,
        "--listen: :25,proxy: proxy needs proxy_from, the networks whose PROXY headers are trusted",
    )
    assert read("--listen=:25,proxy", "--proxy_from=192.0.2.1").listeners[0].proxy


def test_bare_newline_is_one_of_three_words() -> None:
    assert refusal("--bare_newline=rejekt")[1].endswith("not 'rejekt' (did you mean reject?)")
    assert read("--bare_newline=REJECT").bare_newline == "reject"
