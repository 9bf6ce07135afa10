"""Readers of values: each turns the text of a value into the value, or raises ValueError.

The message of the ValueError says what was expected and what was found. It does not say where the
value was: whoever calls a reader knows that, and puts it in front.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Collection, Iterable
from typing import Final

from blackhole import addresses, processors
from blackhole.settings import MODES, NAMESPACE_KEYS, DashboardAddress, Delay, DNSServer, ScenarioVariable
from blackhole.tls_menu import AUTO_CERTIFICATE, CIPHERS, VERSION_NUMBERS

MAX_REPEATED: Final = 60
"""Characters of a wrong value that an error message repeats."""

# Parts of error messages


def expected(what: str, found: object) -> ValueError:
    """Return the error for a value that is not what was expected.

    >>> expected("a port", "x")
    ValueError("expected a port, not 'x'")
    """
    return ValueError(f"expected {what}, not {without_password(str(found))[:MAX_REPEATED]!r}")


def unknown_word(word: object, known: Collection[str], what: str = "one of") -> ValueError:
    """Return the error for a word that is none of the known ones, with the one that it resembles.

    >>> unknown_word("prot", ["host", "port"])
    ValueError("expected one of host, port, not 'prot' (did you mean port?)")
    """
    error = expected(f"{what} {', '.join(known)}", word)
    return ValueError(f"{error}{did_you_mean(word, known)}")


def without_password(text: str) -> str:
    """Return a text with user and password of a URL in it replaced.

    >>> without_password("redis://user:secret@host")
    'redis://***@host'
    """
    return re.sub(r"://.*@", "://***@", text, flags=re.DOTALL)


def shown(word: str) -> str:
    """Return a name from outside as an error message of one line shows it."""
    return word if word.isprintable() and len(word) <= MAX_REPEATED else repr(word[:MAX_REPEATED])


def did_you_mean(word: object, known: Iterable[str], likeness: float = 0.6) -> str:
    """Return the end of a message about an unknown word: the known one it resembles, or nothing.

    >>> did_you_mean("prot", ["host", "port"])
    ' (did you mean port?)'
    """
    import difflib

    close = difflib.get_close_matches(str(word)[:MAX_REPEATED], list(known), 1, likeness)
    return f" (did you mean {close[0]}?)" if close else ""


# Values as text


def value_text(value: object) -> str:
    """Return a value as an operator would write it."""
    match value:
        case None:
            return "0"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6f}".rstrip("0").rstrip(".")
        case (float(least), float(most)):
            return value_text(least) if least == most else f"{value_text(least)},{value_text(most)}"
        case tuple():
            return " ".join(map(str, value))
    return str(value)


MAX_FIELD_NAMES: Final = 8
"""Header fields that can be kept of a transaction."""

# Numbers, switches and words


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return a reader of whole numbers in decimal digits, from `least` to `most`."""

    def read(text: str) -> int:
        if re.fullmatch("[0-9]{1,19}", text) and least <= int(text) <= most:
            return int(text)
        raise expected(f"a whole number from {least} to {most}", text)

    return read


SIZE_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
"""Unit of a size in lower case -> octets."""


def octets(least: int, most: int) -> Callable[[str], int]:
    """Return a reader of a size in octets, with a unit of SIZE_UNITS or without, from `least` to `most`.

    >>> octets(0, 2**31)("50M")
    52428800
    """

    def read(text: str) -> int:
        match = re.fullmatch("([0-9]{1,19})([kKmMgG]?)", text)
        if match and least <= (found := int(match[1]) * SIZE_UNITS[match[2].lower()]) <= most:
            return found
        raise expected(f"a size from {least} to {most}, as 1000, 64k, 50M or 1G", text)

    return read


TIME_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
"""Unit of a time -> seconds."""


def seconds(least: float, most: float) -> Callable[[str], float]:
    """Return a reader of a time, with a unit of TIME_UNITS or in seconds, from `least` to `most` seconds.

    >>> [seconds(0, 3600)(text) for text in ("90", "1.5", "250ms", "5m")]
    [90.0, 1.5, 0.25, 300.0]
    """

    def read(text: str) -> float:
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?|\.[0-9]{1,6})(ms|s|m|h|d)?", text)
        # To microseconds, as `value_text` shows them.
        if match and least <= (found := round(float(match[1]) * TIME_UNITS[match[2] or "s"], 6)) <= most:
            return found
        raise expected(f"a time from {least:g} to {most:g} seconds, as 90, 1.5s, 250ms or 5m", text)

    return read


SWITCH: Final = {
    **dict.fromkeys(("yes", "true", "on", "1"), True),
    **dict.fromkeys(("no", "false", "off", "0"), False),
}
"""The words for yes and no."""


def switch(text: str) -> bool:
    """Read yes or no, in any word of SWITCH."""
    try:
        return SWITCH[text.lower()]
    except KeyError:
        raise expected("yes or no", text) from None


def one_of(known: Collection[str]) -> Callable[[str], str]:
    """Return a reader of one of the `known` words, in either case."""

    def read(text: str) -> str:
        if text.lower() in known:
            return text.lower()
        raise unknown_word(text, known)

    return read


def namespace_keys(text: str) -> tuple[str, ...]:
    """Read what chooses namespaces: keys of NAMESPACE_KEYS, separated by commas or blanks, or off."""
    words = text.lower().replace(",", " ").split()
    for word in words:
        if word not in NAMESPACE_KEYS and words != ["off"]:
            raise unknown_word(word, NAMESPACE_KEYS, "off, or some of")
    return tuple(word for word in NAMESPACE_KEYS if word in words)


mode: Final = one_of(MODES)
count: Final = whole_number(0, 2**31 - 1)
port: Final = whole_number(0, 65535)
_delay_seconds: Final = seconds(0, 3600)


def delay(text: str) -> Delay | None:
    """Read a time, or a range of times; None for no delay."""
    least, comma, most = (part.strip() for part in text.partition(","))
    try:
        found = (_delay_seconds(least), _delay_seconds(most if comma else least))
    except ValueError:
        raise expected("TIME or MIN,MAX, from 0 to 3600 seconds, as 2, 0.5s or 1s,5m", text) from None
    if found[0] > found[1]:
        raise expected("MIN,MAX with MIN not above MAX", text)
    return found if found[1] else None


def workers(text: str) -> int:
    """Read a number of worker processes; `auto` is one for each available processor."""
    if text == "auto":
        return min(processors.available(), 1024)
    try:
        return whole_number(1, 1024)(text)
    except ValueError:
        raise expected("auto or a whole number from 1 to 1024", text) from None


# Files


def printable(text: str) -> str:
    """Read text without control characters."""
    if text.isprintable():
        return text
    raise expected("printable characters only", text)


def path(text: str) -> str:
    """Read a path and make it absolute, because a detached server has another current directory."""
    if not text:
        return ""
    try:
        found = os.path.abspath(os.path.expanduser(text))
        found.encode()
    except OSError:  # from getcwd
        raise expected("an absolute path because the current directory is deleted", text) from None
    except UnicodeEncodeError:
        raise expected("a path in UTF-8", found) from None
    printable(text)
    return found


def certificate(text: str) -> str:
    """Read a path, or the word for a certificate that is issued at start."""
    return text if text == AUTO_CERTIFICATE else path(text)


def tls_version(text: str) -> str:
    """Read a version of TLS, or nothing.

    >>> [tls_version(text) for text in ("1.2", "TLSv1.3", "")]
    ['1.2', '1.3', '']
    """
    version = text.lower().removeprefix("tls").removeprefix("v")
    if text and version not in VERSION_NUMBERS:
        raise expected(f"one of {', '.join(VERSION_NUMBERS)}", text)
    return version


def tls_ciphers(text: str) -> str:
    """Read a cipher list of OpenSSL, or nothing. Whether OpenSSL has these ciphers is found out later."""
    if text and not CIPHERS.fullmatch(text):
        raise expected("a cipher list of OpenSSL, as ECDHE+AESGCM", text)
    return text


def scenarios(text: str) -> tuple[str, ...]:
    """Read names of scenarios, separated by blanks: files and `profile:NAME`. The files are not opened."""
    return tuple(word if word.startswith("profile:") else path(word) for word in text.split())


VARIABLE_NAME: Final = r"[A-Za-z_][A-Za-z0-9_-]*"
"""Matches names of variables of a scenario."""


def variables(text: str) -> tuple[ScenarioVariable, ...]:
    """Read values of variables, NAME=VALUE, separated by blanks. A value may have blanks too.

    >>> [str(one) for one in variables("share=0.5 words=try again")]
    ['share=0.5', 'words=try again']
    """
    found: list[ScenarioVariable] = []
    for word in text.split(" "):
        name, equals, value = word.partition("=")
        if equals and re.fullmatch(VARIABLE_NAME, name):
            found.append(ScenarioVariable(name, value))
        elif found:
            found[-1] = ScenarioVariable(found[-1].name, f"{found[-1].text} {word}".rstrip())
        elif word:
            raise expected("NAME=VALUE", text)
    for one in found:
        if not one.text or not one.text.isprintable():
            raise expected("NAME=VALUE with printable text", str(one))
    return tuple(found)


def auth(text: str) -> str:
    """Read `off`, `any`, or the path of a file with users. The file is not opened."""
    word = text.lower()
    if not word or SWITCH.get(word) is False:
        return "off"
    return "any" if word == "any" else path(text)


def keywords(text: str) -> tuple[str, ...]:
    """Read keywords of SMTP extensions, separated by blanks or commas. Which there are is checked later."""
    words = tuple(text.replace(",", " ").split())
    for word in words:
        if not KEYWORD.fullmatch(word):
            raise expected("default, all, none, an EHLO keyword, or -KEYWORD to leave one out", word)
    return words


# Names and addresses

KEYWORD: Final = re.compile("-?[A-Za-z0-9][A-Za-z0-9-]*")
"""An EHLO keyword (RFC 5321 4.1.1.1), or one to leave out."""

_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOSTNAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_IPV6: Final = re.compile(r"([0-9A-Fa-f:.]+)(%[A-Za-z0-9_.-]+)?")
ADDRESS_AND_PORT: Final = re.compile(r"(\[[^][]+\]|[^][:]*):([0-9]+)")


def _is_address(family: int, text: str) -> bool:
    try:
        return bool(socket.inet_pton(family, text))
    except (OSError, ValueError):
        return False


def host(text: str) -> str:
    """Read an IPv4 address, an IPv6 address (with or without brackets) or a host name."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    v6 = _IPV6.fullmatch(bare)
    if v6 and _is_address(socket.AF_INET6, v6[1]):
        return bare
    # A name that ends in a number is a mistyped address.
    if _is_address(socket.AF_INET, text) or (HOSTNAME.fullmatch(text) and not text.split(".")[-1].isdigit()):
        return text
    raise expected("an IPv4 or IPv6 address or a host name", text)


def hostname(text: str) -> str:
    """Read a host name, or nothing."""
    if not text or HOSTNAME.fullmatch(text):
        return text
    raise expected("a host name of letters, digits, hyphens and dots", text)


MAX_SOCKET_PATH: Final = 107
"""Octets of the path of a UNIX socket (unix(7))."""


def socket_path(text: str) -> str:
    """Read the path of a UNIX socket."""
    if text.startswith("@"):
        raise expected(
            "a path: an abstract socket has no owner and no mode, so every user could use it", text
        )
    if not text or text.endswith("/"):
        raise expected("a path behind unix:", text)
    found = path(text)
    if len(found.encode()) > MAX_SOCKET_PATH:
        raise expected(f"a path of at most {MAX_SOCKET_PATH} octets", found)
    return found


def file_mode(text: str) -> int:
    """Read the permissions of a file in octal digits."""
    if re.fullmatch("0?[0-7]{3}", text):
        return int(text, 8)
    raise expected("permissions in octal digits, as 0660", text)


def networks(text: str) -> tuple[str, ...]:
    """Read networks, separated by blanks or commas; `none` is no network."""
    words = text.replace(",", " ").split()
    return () if words == ["none"] else tuple(map(network, words))


def network(text: str) -> str:
    """Read an address or a network in CIDR notation, or `unix` for all clients of UNIX sockets."""
    try:
        return addresses.UNIX if text == addresses.UNIX else str(addresses.network(text))
    except ValueError:
        raise expected("networks such as 192.0.2.0/24, with no bit set after the prefix", text) from None


def field_names(text: str) -> tuple[str, ...]:
    """Read names of header fields, separated by blanks or commas; `none` is no field."""
    words = text.replace(",", " ").split()
    if words == ["none"]:
        return ()
    for word in words:
        if not re.fullmatch("[!-9;-~]{1,76}", word):
            raise expected("names of header fields (RFC 5322 2.2), without their colons", word)
    if len(words) > MAX_FIELD_NAMES:
        raise expected(f"at most {MAX_FIELD_NAMES} names", text)
    return tuple(dict.fromkeys(words))


def dashboard_address(text: str) -> DashboardAddress:
    """Read `off`, or an address and port, with `token=FILE` and any number of `name=NAME` after them."""
    if SWITCH.get(text.lower()) is False:
        return DashboardAddress()
    address, *words = text.split(",")
    match = ADDRESS_AND_PORT.fullmatch(address)
    if not match:
        raise expected("off or ADDRESS:PORT[,name=NAME][,token=FILE], an IPv6 address in brackets", text)
    names, token = [], ""
    for word in words:
        key, _, value = word.partition("=")
        if key == "name" and HOSTNAME.fullmatch(value):
            names.append(value.lower())
        elif key == "token" and value:
            token = path(value)
        else:
            raise expected("name=NAME or token=FILE after the port", word)
    return DashboardAddress(host(match[1] or "0.0.0.0"), port(match[2]), tuple(names), token)


def dns_server(text: str) -> DNSServer:
    """Read the address of a DNS server, with a port or without; or nothing.

    >>> str(dns_server("192.0.2.53")), str(dns_server("[2001:db8::53]:5353"))
    ('192.0.2.53:53', '[2001:db8::53]:5353')
    """
    match = ADDRESS_AND_PORT.fullmatch(text)
    address, number = match.groups() if match else (text, "53")
    bare = address.removeprefix("[").removesuffix("]")
    if not text:
        return DNSServer()
    if _is_address(socket.AF_INET, bare) or _is_address(socket.AF_INET6, bare):
        return DNSServer(bare, whole_number(1, 65535)(number))
    raise expected("an IPv4 or IPv6 address, as 127.0.0.1, 192.0.2.53:5353 or [::1]:5353", text)


_BASE_PATH: Final = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
"""Matches paths of URLs whose parts mean themselves (RFC 3986 2.3), without `.` and `..`."""

MAX_BASE_PATH: Final = 200
"""Characters."""


def base_path(text: str) -> str:
    """Read what paths of URLs begin with, and return it without a slash at its end.

    >>> base_path("/mail/sink/"), base_path("/")
    ('/mail/sink', '')
    """
    found = text.removesuffix("/")
    if found and not (_BASE_PATH.fullmatch(found) and len(found) <= MAX_BASE_PATH):
        raise expected("a path such as /blackhole, of letters, digits, dots, hyphens and underscores", text)
    return found


FLEET_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def fleet_name(text: str) -> str:
    """Read the name of a fleet."""
    if not FLEET_NAME.fullmatch(text):
        raise expected("up to 64 letters, digits, dots, hyphens and underscores", text)
    return text
