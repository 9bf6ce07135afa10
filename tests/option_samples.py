"""A sample value of every option, random words for the parser, and short forms of `parse`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import strategies as st

from blackhole.action_table import ACTION_HELP
from blackhole.option_table import OPTIONS
from blackhole.options import EXPLAIN_OPTIONS, REQUEST_FLAGS, parse
from blackhole.settings import MODES, OperatorError, Settings

CERT = {"BLACKHOLE_SSL_CERT": "/etc/ssl/mx.pem", "BLACKHOLE_DASHBOARD_CERT": "/etc/ssl/site.pem"}


SAMPLES = {
    "host": "127.0.0.1",
    "port": "2525",
    "listen": "127.0.0.1:2526,mode=bounce,delay=1,5 [::1]:2527",
    "backlog": "16",
    "proxy_from": "192.0.2.0/24 2001:db8::/32",
    "proxy_timeout": "1.5",
    "xclient_from": "192.0.2.0/24 2001:db8::/32",
    "mode": "random",
    "delay": "0.25,3",
    "strict": "yes",
    "hostname": "mx.example.com",
    "message_size_limit": "0",
    "scenario": "/etc/outage.toml profile:flaky",
    "set": "deferral=0.05 words=try again",
    "attempt_store": "rediss://192.0.2.9:6380/1?prefix=sink&timeout=0.25&ca=/etc/ssl/ca.pem",
    "namespace_by": "tag user",
    "extensions": "none CHUNKING",
    "bare_newline": "reject",
    "inspect": "all",
    "inspect_content": "yes",
    "dkim_keys": "/etc/dkim.keys",
    "dkim_resolver": "[::1]:5353",
    "message_directives": "no",
    "auth": "/etc/users",
    "auth_plaintext": "yes",
    "auth_mechanisms": "default EXTERNAL",
    "auth_required": "yes",
    "timeout": "2.5",
    "ssl": "no",
    "ssl_port": "4650",
    "ssl_cert": "/etc/ssl/mx.pem",
    "ssl_key": "/etc/ssl/mx.key",
    "tls_menu": "expired",
    "tls_min": "1.1",
    "tls_max": "1.2",
    "tls_ciphers": "ECDHE+AESGCM:@SECLEVEL=1",
    "client_cert": "require",
    "client_ca": "/etc/ssl/clients.pem",
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
    "stop_after": "5",
    "conf": "/dev/null",
    "log": "/var/log/sink.log",
    "log_format": "json",
    "log_transactions": "yes",
    "debug": "yes",
    "dashboard": "[::1]:8026,name=sink.example.com",
    "dashboard_cert": "/etc/ssl/web.pem",
    "dashboard_key": "/etc/ssl/web.key",
    "dashboard_path": "/blackhole",
    "show_clients": "yes",
    "show_domains": "yes",
    "show_lines": "yes",
    "recent": "500",
    "recent_fields": "Subject From",
    "fleet": "redis://192.0.2.9:6379/1",
    "fleet_name": "north",
    "fleet_control": "yes",
    "namespace": "checkout",
    "follow": "yes",
    "conversation": "yes",
    "progress": "yes",
    "format": "junit",
    "scope": "fleet",
    "json": "yes",
    "fail_on": "should",
}
"""A value of every option that is not its default, as --print-config would write it."""


WriteConf = Callable[[str | bytes], Path]


def read(*argv: str, **environ: str) -> Settings:
    """Return the settings of a command line and an environment."""
    return parse(argv, environ).settings


def load(path: Path, *argv: str, **environ: str) -> Settings:
    """Return the settings of a conf file, a command line and an environment."""
    return read("--conf", str(path), *argv, **environ)


def refusal(*argv: str, **environ: str) -> tuple[int, str]:
    """Return the exit code and the message of the error for a command line and an environment."""
    with pytest.raises(OperatorError) as caught:
        parse(argv, environ)
    return caught.value.code, str(caught.value)


WORDS = st.sampled_from(
    [f"--{option.name}" for option in OPTIONS]
    + [f"--{name}={text}" for name, text in SAMPLES.items()]
    + [f"--{option.name.replace('_', '-')}=" for option in OPTIONS]
    + [flag for flags, _ in REQUEST_FLAGS.values() for flag in flags]
    + [f"--{name}=x" for name in EXPLAIN_OPTIONS]
    + [
        *ACTION_HELP,
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
