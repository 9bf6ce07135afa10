"""URLs of Redis servers: one server, the Sentinels of a service, or a Redis Cluster.

The readers return what a URL says, or raise ValueError as those of `blackhole.values` do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any, Final

from blackhole.settings import FleetServer, RedisSettings
from blackhole.values import SWITCH, expected, host, path, seconds, whole_number

REDIS_SCHEMES: Final = {
    f"redis{secure}{kind and '+'}{kind}": (bool(secure), kind)
    for secure in ("", "s")
    for kind in ("", "sentinel", "cluster")
}
"""Scheme of the URL of a Redis server -> whether it uses TLS, and its kind."""

SENTINEL_PORT: Final = 26379
"""The port of a Sentinel, unless another is given."""

_KEY_PREFIX: Final = re.compile("[!-~]{1,64}")
_SERVICE: Final = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def attempt_store(text: str) -> RedisSettings:
    """Read `local`, or the URL of a Redis server."""
    return RedisSettings() if text.lower() in ("", "local") else _redis(text, "local")


def fleet(text: str) -> FleetServer:
    """Read `off`, or the URL of a Redis server."""
    return FleetServer() if SWITCH.get(text.lower()) is False else FleetServer(*astuple(_redis(text, "off")))


def _redis(text: str, otherwise: str) -> RedisSettings:
    """Read the URL of a Redis server. No error repeats it: there may be a password in it."""
    from urllib.parse import parse_qsl, unquote, urlsplit

    default = RedisSettings()
    try:
        if any(mark in text for mark in "\t\r\n"):  # which urlsplit takes out
            raise ValueError
        url = urlsplit(text)
        query = dict(parse_qsl(url.query, strict_parsing=True) if url.query else ())
        tls, kind = REDIS_SCHEMES[url.scheme]
        login, _, names = url.netloc.rpartition("@")
        named = [urlsplit(f"//{login}@{name}") for name in (names.split(",") if kind else [names])]
        usual = SENTINEL_PORT if kind == "sentinel" else default.port
        hosts = [(host(unquote(one.hostname or "")), one.port or usual) for one in named]
        service, _, number = url.path.removeprefix("/").rpartition("/")
        if kind == "sentinel" and not service:
            service, number = number, ""
        database = whole_number(0, 99999)(number or "0")
        if url.fragment or (_SERVICE.fullmatch(service) is None if kind == "sentinel" else service):
            raise ValueError
    except (ValueError, KeyError):
        raise ValueError(
            f"expected {otherwise}, redis://[USER:PASSWORD@]HOST[:PORT][/DB],"
            " redis+sentinel://HOST[:PORT][,...]/SERVICE[/DB] or redis+cluster://HOST[:PORT][,...]"
        ) from None
    if kind == "cluster" and database:
        raise ValueError("expected no database: a Redis Cluster has none but 0")
    return RedisSettings(
        *hosts[0],
        database,
        unquote(named[0].username or ""),
        unquote(named[0].password or ""),
        tls,
        **_redis_query(query, tls),
        kind=kind,
        service=service,
        others=tuple(hosts[1:]),
    )


def _redis_query(query: Mapping[str, str], tls: bool) -> dict[str, Any]:
    """Return the settings in the query of the URL of a Redis server, with their defaults."""
    if not query.keys() <= {"prefix", "timeout", *(["ca"] if tls else [])}:
        raise ValueError(
            "expected only prefix=NAME, timeout=TIME and, with rediss, ca=FILE after the question mark"
        )
    default = RedisSettings()
    prefix = query.get("prefix", default.prefix)
    if not _KEY_PREFIX.fullmatch(prefix):
        raise expected("a prefix of 1 to 64 printable ASCII characters", prefix)
    timeout = seconds(0.001, 10)(query.get("timeout", f"{default.timeout}"))
    return {"ca": path(query.get("ca", "")), "prefix": prefix, "timeout": timeout}
