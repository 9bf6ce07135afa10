"""Settings of one listener: in one line, in a section of a conf file, and what becomes of them."""

from __future__ import annotations

import os

import pytest

from blackhole import usage
from blackhole.listeners import OF_UNIX_SOCKETS, read_line
from blackhole.option_table import LISTENER_ROWS, LISTENER_SETTINGS, OPTIONS
from blackhole.options import parse
from blackhole.settings import Listener
from tests.option_samples import WriteConf, load, read, refusal

pytestmark = pytest.mark.pure

SAMPLES = {
    "tls": "yes",
    "lmtp": "yes",
    "proxy": "yes",
    "socket_mode": "0640",
    "socket_user": "mail",
    "socket_group": "mail",
    "mode": "bounce",
    "delay": "1,5",
    "strict": "yes",
    "hostname": "mx2.test",
    "message_size_limit": "1M",
    "scenario": "profile:flaky",
    "set": "deferral=0.05",
    "extensions": "default,-VRFY",
    "bare_newline": "reject",
    "auth": "any",
    "auth_plaintext": "yes",
    "auth_mechanisms": "default,-LOGIN",
    "auth_required": "yes",
    "timeout": "90s",
    "cert": "/etc/ssl/mx2.pem",
    "key": "/etc/ssl/mx2.key",
    "tls_menu": "expired",
    "tls_min": "1.3",
    "tls_max": "1.2",
    "tls_ciphers": "ECDHE+AESGCM:@SECLEVEL=1",
    "client_cert": "ask",
    "client_ca": "/etc/ssl/clients.pem",
}
"""A value of each setting that is not the default of its option."""

NEEDED = {"tls": {"cert": "/c"}, "key": {"cert": "/c"}, "set": {"scenario": "profile:flaky"}}
"""What must be set beside a setting."""


def test_every_setting_of_a_listener_has_a_sample() -> None:
    assert SAMPLES.keys() == {row.name for row in LISTENER_ROWS}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("address", [":26", "unix:/run/smtp.sock"])
def test_a_setting_has_the_same_effect_in_one_line_and_in_a_section(
    name: str, address: str, write_conf: WriteConf
) -> None:
    if name in OF_UNIX_SOCKETS and address == ":26":
        return
    settings = NEEDED.get(name, {}) | {name: SAMPLES[name]}
    section = "".join(f'{one} = "{text}"  # a comment\n' for one, text in settings.items())
    line = ",".join([address, *(f"{one}={text}" for one, text in settings.items())])
    trusted = "--proxy_from=192.0.2.1"
    of_section = load(write_conf(f"[listener {address}]\n{section}"), trusted).listeners
    assert of_section == read(f"--listen={line}", trusted).listeners
    assert of_section == load(write_conf(f"[ Listener {address} ]  # this\n{section}"), trusted).listeners
    assert of_section != read(f"--listen={address}", trusted).listeners


@pytest.mark.parametrize(
    "name", [row.name for row in LISTENER_ROWS if row.option not in ("", "mode", "delay")]
)
def test_a_setting_overrides_the_option_for_its_listener_alone(name: str) -> None:
    row = LISTENER_SETTINGS[name]
    others = "".join(f",{one}={text}" for one, text in NEEDED.get(name, {}).items())
    settings = read("--listen", f":1 :2,{name}={SAMPLES[name]}{others}")
    first, second = (getattr(settings.of_listener(one), row.field) for one in settings.listeners)
    assert first == getattr(settings, row.field) != second
    assert second == row.read(SAMPLES[name])


def test_a_listener_may_have_a_setting_by_the_name_of_the_option() -> None:
    assert read("--listen=:26,ssl_cert=/c").listeners == read("--listen=:26,cert=/c").listeners
    assert read("--listen=:26,auth-plaintext").listeners == read("--listen=:26,auth_plaintext=yes").listeners


def test_the_key_of_a_listener_is_read_from_its_certificate_and_not_from_that_of_the_server() -> None:
    settings = read("--ssl_cert=/c", "--ssl_key=/k", "--listen=:26,cert=/d")
    assert settings.of_listener(settings.listeners[0]).ssl_key == ""


def test_a_listener_without_tls_has_no_certificate() -> None:
    settings = read("--ssl=no", "--listen=:26,cert=/d")
    assert settings.of_listener(settings.listeners[0]).ssl_cert == ""


def test_settings_of_a_section_may_have_blanks_and_commas(write_conf: WriteConf) -> None:
    path = write_conf("[listener 127.0.0.1:26]\nextensions = default, -VRFY\ncert = /a b,c.pem\n")
    assert dict(load(path).listeners[0].own)["extensions"] == ("default", "-VRFY")
    assert dict(load(path).listeners[0].own)["ssl_cert"] == "/a b,c.pem"


def test_sections_stand_beside_listen_and_are_overridden_with_it(write_conf: WriteConf) -> None:
    path = write_conf("listen = :1\n[listener [::1]:2]\nmode = bounce\n[listener :3]\nstrict = None\n")
    wanted = (Listener("0.0.0.0", 1), Listener("::1", 2, mode="bounce"), Listener("0.0.0.0", 3))
    assert load(path).listeners == wanted
    assert load(path).origins["listen"] == f"conf {path}:1,2,4"
    assert [one.port for one in load(path, "--listen=:4").listeners] == [4]


def test_the_configuration_that_is_shown_has_the_same_listeners(write_conf: WriteConf) -> None:
    path = write_conf(
        "listen = :1,strict\n"
        '[listener 127.0.0.1:2]\nhostname = mx2.test\nextensions = "default, -VRFY"\nstrict = no\n'
    )
    shown = usage.print_config(load(path))
    assert "#   0.0.0.0:1, mode accept, strict yes\n" in shown
    assert "#   127.0.0.1:2, mode accept, hostname mx2.test, extensions default -VRFY, strict no\n" in shown
    assert load(write_conf(shown)).listeners == load(path).listeners


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[listener]", "1: expected [listener ADDRESS:PORT], not '[listener]'"),
        (
            "[listener :x]",
            "1: listener: expected ADDRESS:PORT, an IPv6 address in brackets, or unix:PATH, not ':x'",
        ),
        (
            "[listener :26]\n\nstrict = maybe",
            "3: listener :26: strict: expected yes or no, not 'maybe'",
        ),
        (
            "[listener :26]\nhostnam = x",
            "2: listener :26: hostnam: unknown setting of a listener (did you mean hostname?)",
        ),
        (
            "[listener :26]\nworkers = 2",
            "2: listener :26: workers: holds for all listeners; move it above the first section",
        ),
        (
            "[listener :26]\nstrict = yes\nstrict = no",
            "3: listener :26: strict: already set for this listener; remove one of the two",
        ),
        ("[listener :26]\n[listener :27]\ntls = yes", "2: listener :27: tls needs ssl_cert"),
        ("[listener :26]\nkey = /k", "1: listener :26: a key without a certificate; set cert too"),
        (
            "listen = :26\n[listener 0.0.0.0:26]",
            "1: listen: 0.0.0.0:26 is used by two listeners; change one of them",
        ),
    ],
)
def test_a_mistake_in_a_section_is_named_with_its_line_and_its_listener(
    text: str, message: str, write_conf: WriteConf
) -> None:
    path = write_conf(text)
    assert refusal("--conf", str(path)) == (os.EX_CONFIG, f"{path}:{message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (":26,strict=maybe", ":26: strict: expected yes or no, not 'maybe'"),
        (":26,hostname", ":26: hostname: expected hostname=NAME"),
        (":26,strict,strict", ":26: strict: already set for this listener; remove one of the two"),
        (":26,mode=0660", ":26: socket_mode: only a listener of the form unix:PATH has a file"),
        (
            "unix:/s,socket_mode=1777",
            "unix:/s: socket_mode: expected permissions in octal digits, as 0660, not '1777'",
        ),
        ("unix:/run/", "expected a path behind unix:, not '/run/'"),
        ("unix:" + 108 * "/", "expected a path behind unix:, not '" + 60 * "/" + "'"),
        ("unix:/" + 107 * "x", "expected a path of at most 107 octets, not '/" + 59 * "x" + "'"),
        (
            "unix:@sink",
            "expected a path: an abstract socket has no owner and no mode, so every user could use it,"
            " not '@sink'",
        ),
        ("unix:/a unix:/a", "unix:/a is used by two listeners; change one of them"),
        (":26,set=share=1", ":26,set=share=1: set needs a scenario of this listener"),
        (":26,key=/k", ":26,key=/k: a key without a certificate; set cert too"),
    ],
)
def test_a_mistake_in_one_line_is_named_with_its_listener_and_its_setting(line: str, message: str) -> None:
    assert refusal(f"--listen={line}") == (os.EX_USAGE, f"--listen: {message}")


def test_a_unix_socket_has_an_absolute_path_and_the_permissions_that_mode_gives() -> None:
    (listener,) = read("--listen=unix:smtp.sock,mode=0660,mode=bounce,lmtp").listeners
    assert (listener.path, listener.socket_mode) == (os.path.abspath("smtp.sock"), 0o660)
    assert (listener.mode, listener.lmtp, str(listener)) == ("bounce", True, f"unix:{listener.path}")


def test_settings_that_are_dangerous_or_have_no_effect_are_warned_about() -> None:
    warnings = parse(["--listen=:26,auth=any", "--listen=:27,auth=any,auth_plaintext"], {}).warnings
    assert warnings == (
        "--listen: :26,auth=any: auth has no effect without cert or auth_plaintext",
        "--listen: :27,auth=any,auth_plaintext: passwords may be sent unencrypted, and anyone on the network "
        "path can read them",
    )


def test_several_scenarios_of_a_listener_are_joined(write_conf: WriteConf) -> None:
    text = "scenario = profile:flaky\nscenario = profile:greylisting\n"
    one_line = read("--listen=:26,scenario=profile:flaky,scenario=profile:greylisting")
    assert load(write_conf(f"[listener :26]\n{text}")).listeners == one_line.listeners
    assert one_line.of_listener(one_line.listeners[0]).scenario == ("profile:flaky", "profile:greylisting")


def test_help_and_sample_list_every_setting_of_a_listener() -> None:
    sample, shown = usage.sample_conf(), usage.help_text()
    for row in LISTENER_ROWS:
        assert f"\n#{row.name} = " in sample.partition("[listener")[2]
        assert f"\n  {row.usage}" in shown.partition("Settings of one listener:")[2]


def test_an_option_that_one_listener_may_set_is_read_in_the_same_way() -> None:
    for option in OPTIONS:
        if option.of_listener:
            assert LISTENER_SETTINGS[option.of_listener] is LISTENER_SETTINGS[option.name]
            assert LISTENER_SETTINGS[option.name].read is option.read


def test_a_given_listener_is_shown_as_it_was_written() -> None:
    text = "[::1]:26,strict,delay=1,5,hostname=mx2.test"
    assert str(read_line(LISTENER_SETTINGS, text)) == text
