"""Checks of options beside one another: what one of them needs of the others.

`found` has the value of every option, `given` those that were given. A check raises OperatorError for
a mistake, adds a line to `warnings` for what has no effect, and fills in what follows from the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any, Final

from blackhole.given_values import GivenValue, GivenValues
from blackhole.listeners import GivenListener
from blackhole.option_table import OPTION_BY_NAME
from blackhole.settings import Listener, OperatorError, RedisSettings
from blackhole.tls_menu import AUTO_CERTIFICATE, NO_ENTRY

NEED_TLS: Final = ("ssl", "ssl_port", "tls_min", "tls_max", "tls_ciphers", "client_cert", "client_ca")
"""Options that need a certificate, and are no mistake without one."""

TLS_FILES: Final = ("ssl_cert", "ssl_key")

OF_DASHBOARD: Final = ("dashboard_cert", "dashboard_key", "dashboard_path")
"""Options that need a dashboard, and are no mistake without one."""


DKIM_KEYS: Final = ("dkim_keys", "dkim_resolver")
"""Options that say where the keys of signatures come from."""


def check_tls(found: dict[str, Any], given: GivenValues, warnings: list[str]) -> None:
    """Remove certificate and key where TLS is off, and warn about options that need TLS."""
    if not found["ssl"]:
        found |= {"ssl_cert": "", "ssl_key": ""}
    elif found["ssl_key"] and found["ssl_cert"] in ("", AUTO_CERTIFICATE):
        raise given["ssl_key"].error("a key without a certificate; set ssl_cert too")
    elif not found["ssl_cert"] and found["tls_menu"] != NO_ENTRY:
        found["ssl_cert"] = AUTO_CERTIFICATE
    elif not has_certificate(found):
        without_effect = (given[name].where for name in NEED_TLS if name in given)
        warnings += (f"{where}: no effect without ssl_cert" for where in without_effect)
    if found["auth"] != "off" and not (found["ssl_cert"] or found["auth_plaintext"]):
        warnings.append(f"{given['auth'].where}: no effect without ssl_cert or auth_plaintext")


def check_dashboard(found: dict[str, Any], given: GivenValues, warnings: list[str]) -> None:
    """Warn about options of a dashboard that is off. Raises OperatorError for a key without a certificate."""
    if found["dashboard_key"] and found["dashboard_cert"] in ("", AUTO_CERTIFICATE):
        raise given["dashboard_key"].error("a key without a certificate; set dashboard_cert too")
    if not found["dashboard"].host:
        without_effect = [given[name].where for name in OF_DASHBOARD if found[name] and name in given]
        warnings += (f"{where}: no effect without dashboard" for where in without_effect)
        found |= {"dashboard_cert": "", "dashboard_key": ""}


def check_inspection(found: Mapping[str, Any], given: GivenValues, warnings: list[str]) -> None:
    """Warn about options that need the inspection of contents."""
    if not found["inspect_content"]:
        without_effect = [given[name].where for name in DKIM_KEYS if str(found[name]) and name in given]
        warnings += (f"{where}: no effect without inspect_content" for where in without_effect)
    elif found["inspect"] == "off":
        warnings.append(f"{given['inspect_content'].where}: no effect with inspect off")


def check_fleet(found: dict[str, Any], given: GivenValues) -> None:
    """Let the attempts of a fleet be in its store. Raises OperatorError for a fleet without a dashboard."""
    if found["fleet"].host and not found["dashboard"].host:
        raise given["fleet"].error("the figures are written by the dashboard's process; set dashboard too")
    if found["fleet"].host and "attempt_store" not in given:
        found["attempt_store"] = RedisSettings(*astuple(found["fleet"]))


def has_certificate(found: Mapping[str, Any]) -> bool:
    """Return whether there is a certificate for all listeners or for one."""
    own = {name for item in found["listen"] for name, *_ in item.settings}
    return bool(found["ssl_cert"]) or not own.isdisjoint(("cert", "tls_menu"))


def check_listener(
    item: GivenListener, listener: Listener, found: Mapping[str, Any], listen: GivenValue, warnings: list[str]
) -> None:
    """Warn about settings of a listener. Raises OperatorError if it needs another option."""
    own = dict(listener.own)
    effective = {**found, **own}
    where = f"{item.where}: listener {item.address}" if item.where else f"{listen.where}: {item}"

    def error(message: str) -> OperatorError:
        return OperatorError(f"{where}: {message}", listen.exit_code)

    if "ssl_key" in own and "ssl_cert" not in own:
        raise error("a key without a certificate; set cert too")
    if listener.tls and not effective["ssl_cert"]:
        raise error(f"tls needs {'ssl_cert' if found['ssl'] else 'ssl = yes'}")
    if "set" in own and "scenario" not in own:
        raise error("set needs a scenario of this listener")
    if listener.proxy and not found["proxy_from"]:
        raise error("proxy needs proxy_from, the networks whose PROXY headers are trusted")
    if "auth" in own and own["auth"] != "off" and not (effective["ssl_cert"] or effective["auth_plaintext"]):
        warnings.append(f"{where}: auth has no effect without cert or auth_plaintext")
    for name, value in own.items():
        if OPTION_BY_NAME[name].warning and value:
            warnings.append(f"{where}: {OPTION_BY_NAME[name].warning}")


def check_distinct(listeners: Sequence[Listener], given: GivenValues) -> None:
    """Raise OperatorError if two listeners have one address and port, or cannot have rules of their own.

    Rules are those of a listener by its address and port as they were given, so port 0 stands for one.
    """
    addresses = [str(listener) for listener in listeners]
    for listener in listeners:
        address = str(listener)
        if addresses.count(address) == 1:
            continue
        last = next(given[name] for name in ("listen", "ssl_port", "port") if name in given)
        if listener.port or listener.path:
            raise last.error(f"{address} is used by two listeners; change one of them")
        if "scenario" in dict(listener.own):
            raise last.error(f"{address}: two listeners with port 0, and a scenario for one; give it a port")
