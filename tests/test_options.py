"""Every option from the command line, the environment and the conf file: values, precedence, errors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blackhole import hostname, processors, usage
from blackhole.action_table import ACTION_HELP
from blackhole.option_table import OPTIONS, Option
from blackhole.options import REQUEST_FLAGS, Invocation, parse
from blackhole.settings import CLIENT_LIMITS, Listener, OperatorError, Settings
from tests.option_samples import (
    CERT,
    SAMPLES,
    TEXT,
    WriteConf,
    check_error,
    load,
    read,
    refusal,
)

ROOT = Path(__file__).parent.parent
PLAIN = Listener("0.0.0.0", 25)
WITH_OPTIONS = [action for action in ACTION_HELP if action not in ("help", "version")]
"""The actions that take the options of a server."""


ROWS = [pytest.param(option, id=option.name) for option in OPTIONS]
CONF_ROWS = [pytest.param(option, id=option.name) for option in OPTIONS if option.name != "conf"]


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
def test_an_option_is_read_from_the_conf_file(option: Option, write_conf: WriteConf) -> None:
    for name in {option.name, option.name.replace("_", "-"), option.name.upper()}:
        for value in (SAMPLES[option.name], f'"{SAMPLES[option.name]}"', f"'{SAMPLES[option.name]}'"):
            others = ("" if option.name == one else f"{one} = /c" for one in ("ssl_cert", "dashboard_cert"))
            path = write_conf("\n".join(["# a comment", *others, f"{name} = {value}  # another\n"]))
            got = load(path)
            assert got.texts[option.name] == SAMPLES[option.name]
            assert got.origins[option.name] == f"conf {path}:4"


@pytest.mark.parametrize("option", ROWS)
def test_giving_the_default_of_an_option_changes_nothing(option: Option) -> None:
    if option.name != "conf":
        assert read(f"--{option.name}={option.default}") == read()


@pytest.mark.parametrize("option", CONF_ROWS)
def test_the_value_of_an_option_reaches_the_settings(option: Option, write_conf: WriteConf) -> None:
    """As a field of the same name, or as a part of the listeners."""
    path = write_conf(f"{option.name} = {SAMPLES[option.name]}\n")
    needed = {name: value for name, value in CERT.items() if name != option.variable}
    changed = load(path, **needed)
    plain = read(**needed)
    if option.name in {field.name for field in fields(Settings)}:
        assert getattr(changed, option.name) != getattr(plain, option.name)
    elif option.name != "ssl_ca_certs_dir":
        assert changed.listeners != plain.listeners


def test_options_and_settings_have_the_same_defaults() -> None:
    assert read() == replace(Settings(), workers=processors.available(), hostname=hostname.own_hostname())


@pytest.mark.parametrize(
    ("alias", "name"), [(alias, option.name) for option in OPTIONS for alias in option.aliases]
)
def test_an_earlier_name_of_an_option_is_accepted_everywhere(
    alias: str, name: str, write_conf: WriteConf
) -> None:
    sample = SAMPLES[name]
    variable = f"BLACKHOLE_{alias.upper()}"
    path = write_conf(f"{alias} = {sample}\n")
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


def test_an_alias_and_the_name_cannot_both_stand_in_a_conf_file(write_conf: WriteConf) -> None:
    path = write_conf("http = off\ndashboard = off\n")
    assert refusal("--conf", str(path)) == (
        os.EX_CONFIG,
        f"{path}:2: dashboard: already set at {path}:1; remove one of the two",
    )


# Precedence


def test_the_command_line_overrides_the_environment_which_overrides_the_conf_file(
    write_conf: WriteConf,
) -> None:
    path = write_conf("port = 1\nmode = bounce\nuser = conf\n")
    got = load(path, "--port", "3", BLACKHOLE_PORT="2", BLACKHOLE_MODE="random")
    assert (got.listeners, got.user) == ((Listener("0.0.0.0", 3, mode="random"),), "conf")
    assert {name: got.origins[name] for name in ("port", "mode", "user", "conf", "log")} == {
        "port": "command line",
        "mode": "environment BLACKHOLE_MODE",
        "user": f"conf {path}:3",
        "conf": "command line",
        "log": "default",
    }


def test_the_environment_can_name_the_conf_file(write_conf: WriteConf) -> None:
    path = write_conf("port = 1\n")
    assert read(BLACKHOLE_CONF=str(path)).listeners[0].port == 1


def test_listeners_from_the_command_line_replace_those_of_the_conf_file(write_conf: WriteConf) -> None:
    path = write_conf("listen = :1\nlisten = :2\n")
    assert [one.port for one in load(path).listeners] == [1, 2]
    assert [one.port for one in load(path, "--listen", ":3").listeners] == [3]


def test_an_empty_environment_variable_counts_as_unset(write_conf: WriteConf) -> None:
    path = write_conf("user = conf\n")
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
        *((f"--port 26 {action}", action) for action in WITH_OPTIONS),
        *((f"{action} --port 26", action) for action in WITH_OPTIONS),
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
def test_a_switch_accepts_every_word_for_yes_and_no(word: str, write_conf: WriteConf) -> None:
    wanted = word in ("yes", "true", "on", "1")
    for spelling in (word, word.upper(), word.title()):
        assert read("--strict", spelling).strict is wanted
        assert load(write_conf(f"strict={spelling}")).strict is wanted


@pytest.mark.parametrize(
    ("flag", "wanted"), [(flag, wanted) for wanted, (flags, _) in REQUEST_FLAGS.items() for flag in flags]
)
def test_a_request_has_several_flags_and_spellings(flag: str, wanted: str) -> None:
    assert parse([flag], {}).request == wanted
    assert parse([flag[:2] + flag[2:].replace("-", "_"), "start"], {}).request == wanted


def test_help_and_version_ignore_all_other_mistakes(write_conf: WriteConf) -> None:
    path = write_conf("port = x\n")
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


def test_one_value_of_listen_may_hold_several_listeners(write_conf: WriteConf) -> None:
    wanted = (Listener("0.0.0.0", 1, mode="bounce"), Listener("::1", 2))
    path = write_conf("listen = :1,mode=bounce\nlisten = [::1]:2\n")
    assert load(path).listeners == wanted
    assert load(path).origins["listen"] == f"conf {path}:1,2"
    assert load(write_conf("listen = :1,mode=bounce [::1]:2\n")).listeners == wanted
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


@pytest.mark.parametrize("action", WITH_OPTIONS)
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


# Error messages


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--prot 25", "--prot: unknown option (did you mean --port?)"),
        ("--por 25", "--por: unknown option (did you mean --port?)"),
        (
            "--message-sise-limit=1",
            "--message-sise-limit: unknown option (did you mean --message-size-limit?)",
        ),
        ("-c x.conf", "-c: an option of Blackhole 2.x; write --conf FILE"),
        ("-b", "-b: an option of Blackhole 2.x; give the action start"),
        ("-port=25", "-port: unknown option (did you mean --port?)"),
        ("--verison", "--verison: unknown option (did you mean --version?)"),
        ("--xyzzy", "--xyzzy: unknown option"),
        ("-x", "-x: unknown option"),
        ("-1", "-1: unknown option"),
        ("-", "-: unknown option"),
        (
            "start -- --port",
            "'--port': unknown action; the actions are run, start, stop, restart, reload, reopen, status,"
            " check, report, top, recent, authority, explain, help, version (did you mean report?)",
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
        ("--ssl-port=1_0", "--ssl-port: expected a whole number from 0 to 65535, not '1_0'"),
        ("--workers=0", "--workers: expected auto or a whole number from 1 to 1024, not '0'"),
        ("--backlog=0", "--backlog: expected a whole number from 1 to 65535, not '0'"),
        (
            "--timeout=0",
            "--timeout: expected a time from 0.1 to 86400 seconds, as 90, 1.5s, 250ms or 5m, not '0'",
        ),
        (
            "--timeout=inf",
            "--timeout: expected a time from 0.1 to 86400 seconds, as 90, 1.5s, 250ms or 5m, not 'inf'",
        ),
        (
            "--drain_timeout=1e9",
            "--drain-timeout: expected a time from 0 to 86400 seconds, as 90, 1.5s, 250ms or 5m, not '1e9'",
        ),
        (
            "--delay=3601",
            "--delay: expected TIME or MIN,MAX, from 0 to 3600 seconds, as 2, 0.5s or 1s,5m, not '3601'",
        ),
        (
            "--delay=1,",
            "--delay: expected TIME or MIN,MAX, from 0 to 3600 seconds, as 2, 0.5s or 1s,5m, not '1,'",
        ),
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
        ("--log=/a\udcff", "--log: expected a path in UTF-8, not '/a\\udcff'"),
        (
            "--listen=25",
            "--listen: expected ADDRESS:PORT, an IPv6 address in brackets, or unix:PATH, not '25'",
        ),
        (
            "--listen=::1:25",
            "--listen: expected ADDRESS:PORT, an IPv6 address in brackets, or unix:PATH, not '::1:25'",
        ),
        (
            "--listen=:25,tsl",
            "--listen: :25: tsl: unknown setting of a listener (did you mean tls?)",
        ),
        (
            "--listen=:25,delay=x",
            "--listen: :25: delay: expected TIME or MIN,MAX, from 0 to 3600 seconds, as 2, 0.5s or 1s,5m,"
            " not 'x'",
        ),
        ("--listen=:99999", "--listen: expected a whole number from 0 to 65535, not '99999'"),
        ("--listen=[::g]:25", "--listen: expected an IPv4 or IPv6 address or a host name, not '[::g]'"),
        ("--listen=:26,tls", "--listen: :26,tls: tls needs ssl_cert"),
        ("--listen=:26,tls --ssl_cert=c --ssl=no", "--listen: :26,tls: tls needs ssl = yes"),
        ("--listen=:26 --listen=:26", "--listen: 0.0.0.0:26 is used by two listeners; change one of them"),
        ("--listen=:25 --port=25", "--listen: 0.0.0.0:25 is used by two listeners; change one of them"),
        (
            "--listen=:0,scenario=profile:flaky --listen=:0",
            "--listen: 0.0.0.0:0: two listeners with port 0, and a scenario for one; give it a port",
        ),
        ("--ssl_cert=c --port=465", "--port: 0.0.0.0:465 is used by two listeners; change one of them"),
        ("--ssl_cert=c --ssl_port=25", "--ssl-port: 0.0.0.0:25 is used by two listeners; change one of them"),
        ("--ssl_key=k", "--ssl-key: a key without a certificate; set ssl_cert too"),
        (
            "strat",
            "'strat': unknown action; the actions are run, start, stop, restart, reload, reopen, status,"
            " check, report, top, recent, authority, explain, help, version (did you mean start?)",
        ),
        (
            "",
            "'': unknown action; the actions are run, start, stop, restart, reload, reopen, status,"
            " check, report, top, recent, authority, explain, help, version",
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
            [
                "--ssl-ca-certs-dir: ignored, because the authorities of clients are in the file client_ca;"
                " remove it"
            ],
        ),
        ("--ssl=yes", {"SSL_PORT": "1"}, ["--ssl: no effect without ssl_cert"]),
        ("--ssl_port=1", {}, ["--ssl-port: no effect without ssl_cert"]),
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


# Side effects and random input


def test_parsing_prints_nothing_and_imports_no_server_module(write_conf: WriteConf) -> None:
    script = (
        "import sys\nfrom blackhole import options, usage\n"
        "options.parse(sys.argv[1:], {'BLACKHOLE_PROT': '1'}); usage.help_text()\n"
        "sys.exit(' '.join({'tornado', 'ssl', 'asyncio', 'logging', 'difflib'} & sys.modules.keys()))"
    )
    argv = [sys.executable, "-c", script, "--debug", "--conf", str(write_conf("port = 1"))]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "difflib\n", 1)


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
        ("::ffff:10.0.0.0/104 ::ffff:a00:1", ("10.0.0.0/8", "10.0.0.1/32")),
    ],
)
def test_networks_are_separated_by_blanks_or_commas(text: str, networks: tuple[str, ...]) -> None:
    assert read(f"--trusted={text}").trusted == networks


@pytest.mark.parametrize("text", ["192.0.2.1/24", "mx.test", "192.0.2.0/33", "none none", "::/129"])
def test_a_mistyped_network_is_an_error(text: str) -> None:
    code, message = refusal(f"--proxy_from={text}")
    assert code == os.EX_USAGE
    assert message.startswith("--proxy-from: expected networks such as 192.0.2.0/24")


def test_a_listener_with_proxy_needs_trusted_networks() -> None:
    assert refusal("--listen=:25,proxy") == (
        os.EX_USAGE,
        "--listen: :25,proxy: proxy needs proxy_from, the networks whose PROXY headers are trusted",
    )
    assert read("--listen=:25,proxy", "--proxy_from=192.0.2.1").listeners[0].proxy


def test_bare_newline_is_one_of_three_words() -> None:
    assert refusal("--bare_newline=rejekt")[1].endswith("not 'rejekt' (did you mean reject?)")
    assert read("--bare_newline=REJECT").bare_newline == "reject"


# Units


@pytest.mark.parametrize(
    ("text", "octets"),
    [("50M", 50 << 20), ("50m", 50 << 20), ("64k", 65536), ("1G", 1 << 30), ("1000", 1000)],
)
def test_a_size_may_have_a_unit_in_every_source(text: str, octets: int, write_conf: WriteConf) -> None:
    assert read(f"--message-size-limit={text}").message_size_limit == octets
    assert read(BLACKHOLE_MESSAGE_SIZE_LIMIT=text).message_size_limit == octets
    assert load(write_conf(f"message_size_limit = {text}\nmin_data_rate = {text}")).min_data_rate == octets


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("1.5s", 1.5), ("250ms", 0.25), ("5m", 300.0), ("2h", 7200.0)]
)
def test_a_time_may_have_a_unit_in_every_source(text: str, seconds: float, write_conf: WriteConf) -> None:
    assert read(f"--timeout={text}").timeout == seconds
    assert read(BLACKHOLE_TIMEOUT=text).timeout == seconds
    assert load(write_conf(f"timeout = {text}")).timeout == seconds


def test_a_delay_may_have_units() -> None:
    assert read("--delay=500ms,1m").listeners[0].delay == (0.5, 60.0)
    assert read("--listen=:26,mode=bounce,delay=1s,5m").listeners[0].delay == (1.0, 300.0)
    assert read("--attempt-store=redis://h?timeout=20ms").attempt_store.timeout == 0.02


@pytest.mark.parametrize(
    "text", ["50MB", "50 M", "-1", "1.5M", "M", "", "8388608T", "9999999999G", "\u0661M"]
)
def test_a_wrong_size_is_an_error_that_shows_the_form(text: str) -> None:
    code, message = refusal(f"--message-size-limit={text}")
    assert (code, message.partition(",")[2]) == (
        os.EX_USAGE,
        f" as 1000, 64k, 50M or 1G, not {text!r}",
    )


# Help


@pytest.mark.parametrize(
    ("argv", "topic"),
    [
        ("--help", "help"),
        ("help", "help"),
        ("status --help", "status"),
        ("help status", "status"),
        ("--help status --port=x", "status"),
        ("help help", "help"),
        ("help version", "version"),
        ("--prot help", "help"),
    ],
)
def test_help_is_an_action_and_an_option_of_each_action(argv: str, topic: str) -> None:
    got = parse(argv.split(), {})
    assert (got.request, got.action) == ("help", topic)


def test_help_about_an_unknown_action_is_an_error() -> None:
    code, message = refusal("help", "strat")
    assert (code, message[:24], message[-21:]) == (
        os.EX_USAGE,
        "'strat': unknown action;",
        "(did you mean start?)",
    )


def test_version_is_an_action() -> None:
    assert parse(["version"], {}).request == parse(["version", "--port=x"], {}).request == "version"


@pytest.mark.parametrize(
    ("text", "path"),
    [("", ""), ("/", ""), ("/blackhole", "/blackhole"), ("/a/b.c_d~e-f/", "/a/b.c_d~e-f")],
)
def test_base_path_has_no_slash_at_its_end(text: str, path: str) -> None:
    assert read(f"--dashboard_path={text}").dashboard_path == path


@pytest.mark.parametrize(
    "text",
    ["x", "//", "/a//b", "/..", "/a/../b", "/./a", "/a b", "/a?b", "/a#", "/%61", "/ü", "/" + "x" * 200],
)
def test_base_path_that_could_mean_another_is_refused(text: str) -> None:
    assert refusal(f"--dashboard_path={text}")[1].startswith("--dashboard-path: expected a path such as")


def test_options_of_a_dashboard_that_is_off_give_a_warning() -> None:
    parsed = parse(["--dashboard=off", "--dashboard-cert=/c", "--dashboard_path=/x"], {})
    assert [one for one in parsed.warnings if "no effect without dashboard" in one] == [
        "--dashboard-cert: no effect without dashboard",
        "--dashboard-path: no effect without dashboard",
    ]
    assert parsed.settings.dashboard_cert == ""


@pytest.mark.parametrize(
    ("argv", "warnings"),
    [
        (("--dkim-keys=/k", "--dkim-resolver=::1"), [1, 1, 0]),
        (("--dkim-keys=/k", "--dkim-resolver=::1", "--inspect-content"), [0, 0, 0]),
        (("--dkim-keys=", "--dkim-resolver="), [0, 0, 0]),
        (("--inspect-content", "--inspect=off"), [0, 0, 1]),
    ],
)
def test_option_that_needs_the_inspection_of_contents_gives_a_warning_without_it(
    argv: tuple[str, ...], warnings: list[int]
) -> None:
    lines = (
        "--dkim-keys: no effect without inspect_content",
        "--dkim-resolver: no effect without inspect_content",
        "--inspect-content: no effect with inspect off",
    )
    assert [parse(argv, {}).warnings.count(line) for line in lines] == warnings


@pytest.mark.parametrize("cert", ["", "auto"])
def test_key_of_a_dashboard_without_a_certificate_is_refused(cert: str) -> None:
    error = "--dashboard-key: a key without a certificate; set dashboard_cert too"
    assert refusal("--dashboard-key=/k", f"--dashboard-cert={cert}")[1] == error
