"""Texts for the operator: --help, --version, --print-config and the sample conf file."""

from __future__ import annotations

import shlex
import ssl
import sys
from pathlib import Path

import pytest

from blackhole import __version__, options, processors, usage
from blackhole.action_table import ACTION_BY_WORD, ACTION_HELP
from blackhole.option_table import OPTION_BY_NAME, OPTIONS
from blackhole.options import EXPLAIN_OPTIONS, REQUEST_FLAGS, parse
from blackhole.settings import MODES, Settings
from blackhole.usage import EXAMPLES, SIGNALS
from tests.option_samples import (
    WriteConf,
    load,
    read,
)

ROOT = Path(__file__).parent.parent


def test_help_fits_80_columns_and_lists_everything() -> None:
    text = usage.help_text()
    lines = text.splitlines()
    assert [line for line in lines if len(line) > 79 or line != line.rstrip()] == []
    for option in OPTIONS:
        assert f"  --{option.name.replace('_', '-')} {option.metavar}".rstrip() in text
        assert option.help in " ".join(text.split())
        if option.default:
            assert f"[{option.default_note or option.default}" in " ".join(text.split())
        assert f"\n{option.group}:\n" in text
    for word, about in (ACTION_HELP | MODES | SIGNALS).items():
        assert f"\n  {word} " in text
        assert about in " ".join(text.split())
    for name, (value, about) in EXPLAIN_OPTIONS.items():
        assert f"\n  --{name} {value}" in text
        assert about in " ".join(text.split())
    for flags, about in REQUEST_FLAGS.values():
        assert f"\n  {', '.join(flags)}" in text
        assert about in text
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("command", EXAMPLES)
def test_the_examples_in_help_are_valid(command: str, write_conf: WriteConf) -> None:
    program, *argv = shlex.split(command.replace("/etc/blackhole.conf", str(write_conf(usage.sample_conf()))))
    assert program == "blackhole"
    assert parse(argv, {}).warnings == ()


def test_the_sample_conf_file_is_made_from_the_option_table() -> None:
    sample = (ROOT / "blackhole.conf.sample").read_text()
    assert sample == usage.sample_conf(), (
        "python -c 'from blackhole import options; print(usage.sample_conf(), end=\"\")'"
        " > blackhole.conf.sample writes it anew"
    )
    assert [line for line in sample.splitlines() if len(line) > 88] == []


def test_the_sample_conf_file_holds_the_defaults(write_conf: WriteConf) -> None:
    lines = usage.sample_conf().partition("#[listener")[0].splitlines()
    settings = [line[1:] for line in lines if line[:1] == "#" and line[1:2].isalpha()]
    assert [line.split(" =")[0] for line in settings] == [row.name for row in OPTIONS if row.name != "conf"]
    assert load(write_conf("\n".join(lines))) == load(write_conf("\n".join(settings))) == read()


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
def test_print_config_is_a_conf_file_for_the_same_settings(argv: str, write_conf: WriteConf) -> None:
    wanted = parse(argv.split(), {})
    path = write_conf(usage.print_config(wanted.settings))
    got = parse([wanted.action, "--conf", str(path)], {})
    assert got.settings == wanted.settings
    assert not [warning for warning in got.warnings if "effect" in warning]


def test_print_config_quotes_values_that_need_it(write_conf: WriteConf) -> None:
    got = read("--log", "/a #'b", "--user", '"x', "--group", "None", "--pid", "/#")
    assert load(write_conf(usage.print_config(got))) == got


def test_print_config_shows_where_each_value_comes_from(write_conf: WriteConf) -> None:
    path = write_conf("mode = bounce\n")
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
        f"workers = {processors.available()} # default",
        f"#conf = {path} # command line",
    ):
        assert wanted in lines
    assert "TLS" in usage.print_config(read("--ssl_cert", "c")).splitlines()[2]
    assert "port = 25" in usage.print_config(Settings())


def test_print_config_shows_the_files_that_will_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options.os, "geteuid", lambda: 1000)
    environ = {"XDG_RUNTIME_DIR": "/run/user/1000", "XDG_STATE_HOME": "/home/ann/state"}

    def shown(*argv: str) -> list[str]:
        text = usage.print_config(parse([*argv, "--ssl-cert=/etc/mx.pem"], environ).settings)
        return [" ".join(line.split()) for line in text.splitlines()]

    pidfile, log = "/run/user/1000/blackhole.pid", "/home/ann/state/blackhole.log"
    assert f"pid = # default: none in the foreground, {pidfile} with start" in shown()
    assert f"log = # default: standard error in the foreground, {log} with start" in shown()
    assert "ssl_key = # default: read from /etc/mx.pem" in shown()
    assert {f"pid = {pidfile} # default", f"log = {log} # default"} <= {*shown("start")}
    assert "pid = /x # command line" in shown("--pid=/x")


def test_version_lists_the_parts_a_bug_report_needs() -> None:

    import tornado

    blackhole, of_tornado, python, openssl = usage.version_text().splitlines()
    assert blackhole == f"Blackhole {__version__}"
    assert of_tornado == f"Tornado {tornado.version}"
    assert python.startswith(f"Python {'.'.join(map(str, sys.version_info[:3]))}")
    assert openssl == ssl.OPENSSL_VERSION


@pytest.mark.parametrize("word", ACTION_HELP)
def test_the_help_of_an_action_fits_80_columns_and_names_what_it_takes(word: str) -> None:
    text = usage.action_help(word)
    lines = text.splitlines()
    assert lines[0].startswith(f"Usage: blackhole {word}")
    assert [line for line in lines if len(line) > 79 or line != line.rstrip()] == []
    action = ACTION_BY_WORD[word]
    for name in action.options:
        assert f"\n  {OPTION_BY_NAME[name].flag} " in text
    for code, about in action.statuses.items():
        assert f"\n  {code} " in text
        assert about in " ".join(text.split())
    assert ("It takes all options" in text) == (word in ("run", "start", "restart"))
    assert ("--rcpt" in text) == (word == "explain")
