"""Listeners as an operator writes them: `ADDRESS:PORT,tls,hostname=mx2.test` in one line, or a section of a
conf file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from blackhole import values
from blackhole.settings import Delay, Listener
from blackhole.values import did_you_mean, expected

LISTEN: Final = "ADDRESS:PORT|unix:PATH[,SETTING]..."
"""How a listener is written in one line."""

ADDRESS: Final = "ADDRESS:PORT, an IPv6 address in brackets, or unix:PATH"
"""What a listener begins with, for error messages."""


UNIX_PREFIX: Final = "unix:"

FILE_MODE: Final = re.compile("0?[0-7]{3}")
"""A value of `mode` that means the permissions of a UNIX socket's file."""

OF_UNIX_SOCKETS: Final = ("socket_mode", "socket_user", "socket_group")


class ListenerSetting(NamedTuple):
    """Something that may be set for one listener."""

    name: str
    read: Callable[[str], Any]
    """Return the value of a text. Raises ValueError."""
    metavar: str
    """Empty: a switch."""
    help: str
    field: str
    """The field of `Listener`, or of `Settings` if it is one of the server's options too."""
    option: str = ""
    """The option whose value listeners have that do not set it for themselves; empty: there is none."""
    repeats: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """Return the setting as one types it in one line."""
        return f"{self.name}={self.metavar}" if self.metavar else self.name


OWN_SETTINGS: Final = (
    ListenerSetting("tls", values.switch, "", "TLS from the first octet, as on port 465 (RFC 8314)", "tls"),
    ListenerSetting("lmtp", values.switch, "", "LMTP in place of SMTP (RFC 2033)", "lmtp"),
    ListenerSetting(
        "socket_mode",
        values.file_mode,
        "MODE",
        "permissions of the file of a UNIX socket [0666]",
        "socket_mode",
    ),
    ListenerSetting("socket_user", values.printable, "USER", "owner of that file", "socket_user"),
    ListenerSetting("socket_group", values.printable, "GROUP", "group of that file", "socket_group"),
    ListenerSetting("proxy", values.switch, "", "each connection begins with a PROXY header", "proxy"),
)
"""The settings that are those of a listener alone."""

LISTENER_FIELDS: Final = frozenset(Listener.__dataclass_fields__)


class GivenSetting(NamedTuple):
    """A setting of one listener: the text that was given, and its value."""

    name: str
    text: str
    value: Any


class GivenListener(NamedTuple):
    """A listener as it was given. Its text is the one-line form."""

    address: str
    """As it was written."""
    host: str
    port: int
    path: str = ""
    """That of a UNIX socket, in place of host and port."""
    settings: tuple[GivenSetting, ...] = ()
    where: str = ""
    """The file and the line where its section begins; empty: it was given in one line."""

    @property
    def texts(self) -> tuple[tuple[str, str], ...]:
        """Return the settings as lines of a section have them: names and texts."""
        return tuple((name, text or "yes") for name, text, _ in self.settings)

    def __str__(self) -> str:
        words = (f"{name}={text}" if text else name for name, text, _ in self.settings)
        return ",".join((self.address, *words))


def read_address(text: str) -> GivenListener:
    """Return the listener of an address without settings. Raises ValueError."""
    if text.lower().startswith(UNIX_PREFIX):
        return GivenListener(text, "", 0, values.socket_path(text[len(UNIX_PREFIX) :]))
    match = values.ADDRESS_AND_PORT.fullmatch(text)
    if not match:
        raise expected(ADDRESS, text)
    return GivenListener(text, values.host(match[1] or "0.0.0.0"), values.port(match[2]))


def read_setting(known: Mapping[str, ListenerSetting], name: str, text: str | None) -> GivenSetting:
    """Return a setting of one listener; `text` is None where it has no value. Raises ValueError.

    `known` are the settings by name, with hyphens or underscores. As `mode`, digits are permissions.
    """
    if name == "mode" and FILE_MODE.fullmatch(text or ""):
        name = "socket_mode"
    setting = known.get(name.replace("-", "_"))
    if setting is None:
        close = did_you_mean(name, {row.name for row in known.values()})
        raise ValueError(f"{values.shown(name)}: unknown setting of a listener{close}")
    if text is None and setting.metavar:
        raise ValueError(f"{setting.name}: expected {setting.usage}")
    try:
        return GivenSetting(setting.name, text or "", setting.read("yes" if text is None else text))
    except ValueError as error:
        raise ValueError(f"{setting.name}: {error}") from None


def add_setting(
    known: Mapping[str, ListenerSetting], listener: GivenListener, given: GivenSetting
) -> GivenListener:
    """Return a listener with one setting more. Raises ValueError if it has that setting already."""
    if given.name in OF_UNIX_SOCKETS and not listener.path:
        raise ValueError(f"{given.name}: only a listener of the form unix:PATH has a file")
    if given.name in {one.name for one in listener.settings} and not known[given.name].repeats:
        raise ValueError(f"{given.name}: already set for this listener; remove one of the two")
    return listener._replace(settings=(*listener.settings, given))


def read_line(known: Mapping[str, ListenerSetting], text: str) -> GivenListener:
    """Return the listener of a line `ADDRESS:PORT,SETTING,...`. Raises ValueError."""
    address, *words = re.split(",(?=[a-z])", text)  # the comma of delay=1,5 comes before a digit
    if text.endswith(","):
        raise expected(f"{LISTEN}, and a blank without a comma between two listeners", text)
    listener = read_address(address)
    for word in words:
        name, equals, value = word.partition("=")
        try:
            listener = add_setting(known, listener, read_setting(known, name, value if equals else None))
        except ValueError as error:
            raise ValueError(f"{address}: {error}") from None
    return listener


def make(
    known: Mapping[str, ListenerSetting], given: GivenListener, mode: str, delay: Delay | None
) -> Listener:
    """Return a listener, which has this mode and this delay if it sets none for itself."""
    found: dict[str, Any] = {"mode": mode, "delay": delay}
    for name, _, value in given.settings:
        setting = known[name]
        found[setting.field] = found.get(setting.field, ()) + value if setting.repeats else value
    if "ssl_cert" in found:
        found.setdefault("ssl_key", "")  # it is in the file with the certificate
    if "scenario" in found:
        found.setdefault("set", ())  # the variables of the server are those of its own scenario
    own = tuple((field, value) for field, value in found.items() if field not in LISTENER_FIELDS)
    of_listener = {field: value for field, value in found.items() if field in LISTENER_FIELDS}
    return Listener(given.host, given.port, path=given.path, own=own, **of_listener)
