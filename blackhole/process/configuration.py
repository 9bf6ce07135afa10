"""A configuration: what the settings ask for, loaded and checked, and the sockets opened for it."""

from __future__ import annotations

import os
import resource
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from socket import getaddrinfo, socket
from typing import Any, Final, NamedTuple, TypeVar

from blackhole import __version__, options
from blackhole.addresses import is_loopback, socket_host
from blackhole.messages.dkim_verification import DKIMKeys, SigningKey
from blackhole.net import acceptor, proxy
from blackhole.net.acceptor import Address, AddressInUseError
from blackhole.net.menu_certificates import MenuCertificates
from blackhole.net.resolved_keys import signing_keys
from blackhole.net.server import RESERVED_FDS
from blackhole.net.tls import TLSContexts
from blackhole.process import (
    auth_file,
    dkim_key_file,
    orphans,
    privileges,
    systemd,
    tls_configuration,
    unix_sockets,
)
from blackhole.process.tls_configuration import DashboardTLS, TLSInputs
from blackhole.process.unix_sockets import SocketFile
from blackhole.rules import scenario
from blackhole.rules.model import Rule
from blackhole.rules.scenario import Scenario, ScenarioSource
from blackhole.settings import DashboardAddress, Listener, OperatorError, RedisSettings, Settings
from blackhole.smtp import auth, extensions
from blackhole.store.active_scenario import ActiveScenario
from blackhole.store.redis_pool import redis_errors

RedisServerSettings = TypeVar("RedisServerSettings", bound=RedisSettings)

SMTP_PORT: Final = 25

LMTP_EXTENSIONS: Final = frozenset(("PIPELINING", "ENHANCEDSTATUSCODES"))
"""The extensions that every server of LMTP has (RFC 2033 5)."""

Warn = Callable[[str], None]
"""Shows the operator a warning."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings, and what was loaded and opened because of them."""

    settings: Settings
    """With uid and gid in place of names, and with the passwords of the auth file."""
    tls: Mapping[Listener, TLSContexts]
    """Those of the listeners that have TLS."""
    menu: MenuCertificates | None
    """The certificates of the TLS menu; None where nothing needs them."""
    scenario: ActiveScenario
    bound: Mapping[Listener, list[socket]]
    """The listening sockets of each listener: several where a name has several addresses."""
    dashboard_sockets: list[socket]
    """Empty when there is no dashboard."""
    dashboard_tls: DashboardTLS | None = None
    socket_files: dict[str, SocketFile] = field(default_factory=dict)
    """The files of UNIX sockets that this server has bound, by their paths."""
    dkim_keys: DKIMKeys = field(default_factory=dict[bytes, SigningKey])
    """The keys with which workers verify the signatures of messages."""

    @property
    def smtp_sockets(self) -> set[socket]:
        return {listening for sockets in self.bound.values() for listening in sockets}

    @property
    def sockets(self) -> set[socket]:
        return self.smtp_sockets.union(self.dashboard_sockets)

    def facts(self, dashboard_runs: bool) -> dict[str, Any]:
        """Return what `blackhole status` shows of it, and how its options are set, for JSON."""
        settings = self.settings
        dashboard = self.dashboard_sockets if dashboard_runs else []
        return {
            "version": __version__,
            "listeners": [
                {
                    "address": _where(one, sockets),
                    "mode": one.mode,
                    "delay": one.delay,
                    "tls": "implicit" if one.tls else "starttls" if one in self.tls else "off",
                    "proxy": one.proxy,
                    "service": "lmtp" if one.lmtp else "smtp",
                    "hostname": self.settings.of_listener(one).hostname,
                }
                for one, sockets in self.bound.items()
            ],
            "scenario": list(settings.scenario),
            "set": [str(one) for one in settings.set],
            "rules": len(self.scenario.all_rules),
            "dashboard": self._dashboard_url() if dashboard else None,
            "dashboard_certificate": self.dashboard_tls.certificate if self.dashboard_tls else "",
            "log": settings.log,
            "pidfile": settings.pid,
            "authority": self.menu.authority.decode() if self.menu is not None else "",
            "lines": list(self.describe(dashboard_runs)),
            "options": settings.texts,
            "given": [name for name, origin in settings.origins.items() if options.is_given(origin)],
        }

    def _dashboard_url(self) -> str:
        where = _where(replace(self.settings.dashboard, names=(), token_file=""), self.dashboard_sockets)
        scheme, path = "https" if self.dashboard_tls else "http", self.settings.dashboard_path
        return " and ".join(f"{scheme}://{one}{path}/" for one in where.split(" and "))

    def describe(self, dashboard_runs: bool) -> Iterator[str]:
        """Yield a line for each listener, for the dashboard and for a shared attempt store."""
        workers = _count(self.settings.workers, "worker")
        for listener, sockets in self.bound.items():
            where = _where(listener, sockets)
            count = len(self.scenario.of_listener(str(listener)).rules)
            rules = f", {_count(count, 'rule')}" if count else ""
            delay = ", delay {:g} to {:g} s".format(*listener.delay) if listener.delay else ""
            security = "TLS" if listener.tls else "STARTTLS" if listener in self.tls else "no TLS"
            if listener in self.tls:
                security += self.tls[listener].note
            proxied = ", behind a proxy" if listener.proxy else ""
            service = "LMTP, " if listener.lmtp else ""
            own = dict(listener.own).get("hostname")
            name = f" as {own}" if own else ""
            how = f"{service}mode {listener.mode}{delay}{rules}, {workers}, {security}{proxied}"
            yield f"listening on {where}{name}, {how}"
        if self.menu is not None:
            has_dashboard = dashboard_runs and self.dashboard_sockets
            url = f" and {self._dashboard_url()}authority.pem" if has_dashboard else ""
            yield (
                f"certificates were issued, the good one with SHA-256 {self.menu.fingerprint};"
                f" their authority: blackhole authority{url}"
            )
        if self.dashboard_sockets and not dashboard_runs:
            yield "the dashboard does not start; the log says why"
        elif self.dashboard_sockets:
            yield f"dashboard on {self._dashboard_url()}"
        if self.settings.attempt_store.host:
            yield f"attempts are stored in {self.settings.attempt_store}"
        if self.settings.fleet.host:
            yield f"in the fleet {self.settings.fleet_name} of {self.settings.fleet}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _where(asked: Listener | DashboardAddress, sockets: Iterable[socket]) -> str:
    """Return the addresses that were bound: the kernel has chosen a port where 0 was asked for."""
    if isinstance(asked, Listener) and asked.path:
        return str(asked)
    names = [bound.getsockname() for bound in sockets]
    return " and ".join(str(replace(asked, host=socket_host(name), port=name[1])) for name in names)


class Inputs(NamedTuple):
    """What was read for a configuration. It can be sent from one process to another."""

    settings: Settings
    """With uid and gid in place of names, and with the passwords of the auth file."""
    tls: TLSInputs
    sources: tuple[ScenarioSource, ...]
    own_sources: Mapping[str, tuple[ScenarioSource, ...]]
    """Those of the listeners that have scenarios of their own, by address."""
    read_at: float
    """Seconds since 1970."""


def load(settings: Settings, warn: Warn) -> Configuration:
    """Return a configuration without sockets: all files read, all names resolved, nothing bound.

    Raises OperatorError.
    """
    return make(read(settings, warn), warn)


def read(settings: Settings, warn: Warn, menu: MenuCertificates | None = None) -> Inputs:
    """Read all files of a configuration, and resolve user and group. It may wait for a slow file system.

    `menu` has the certificates of the TLS menu that were issued before a reload. Raises OperatorError.
    """
    for listener in settings.listeners:
        unix_sockets.file_owner(listener)
        if listener.lmtp:
            _warn_about_lmtp(listener, settings.of_listener(listener), warn)
        _check_offer(settings.of_listener(listener), f"listener {listener}: " if listener.own else "")
    uid, gid = privileges.resolve(settings.user, settings.group)
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = max(1, files - RESERVED_FDS)
    if files != resource.RLIM_INFINITY and connections < settings.max_connections:
        warn(
            f"max_connections is {connections} instead of {settings.max_connections}:"
            f" a worker may open only {files} files; raise the limit (ulimit -n, LimitNOFILE)"
        )
    attempt_store, fleet = _with_authority(settings.attempt_store), _with_authority(settings.fleet)
    sources = scenario.read_sources(settings.scenario, settings.set)
    own_sources = {
        str(listener): scenario.read_sources(own.scenario, own.set)
        for listener in settings.listeners
        if "scenario" in dict(listener.own) and (own := settings.of_listener(listener))
    }
    rules = ActiveScenario(Scenario(scenario.parse_sources(sources)), own_rules=_own_rules((), own_sources))
    of_rules = scenario.tls_parameters(rules.all_rules)
    passwords = {}
    for path in sorted({one.auth for one in of_listeners(settings)} - {"off", "any"}):
        passwords[path], warning = auth_file.load(path)
        if warning:
            warn(warning)
    dashboard = settings.dashboard
    if dashboard.token_file:
        token, warning = auth_file.load_token(dashboard.token_file)
        dashboard = replace(dashboard, token=token)
        if warning:
            warn(warning)
        if not (settings.dashboard_cert or is_loopback(dashboard.host)):
            warn(
                "dashboard: the token crosses the network unencrypted;"
                " set dashboard_cert, or let a proxy with TLS listen there instead"
            )
    records = dkim_key_file.load_records(settings.dkim_keys) if settings.dkim_keys else {}
    return Inputs(
        replace(
            settings,
            dkim_records=records,
            user=str(uid),
            group=str(gid),
            password_files=passwords,
            dashboard=dashboard,
            attempt_store=attempt_store,
            fleet=fleet,
        ),
        tls_configuration.read(settings, of_rules, menu),
        sources,
        own_sources,
        time.time(),
    )


def _own_rules(
    before: Sequence[Rule], sources: Mapping[str, tuple[ScenarioSource, ...]]
) -> dict[str, tuple[Rule, ...]]:
    """Return the rules of the listeners that have scenarios of their own, numbered after those `before`.

    Raises OperatorError.
    """
    found: dict[str, tuple[Rule, ...]] = {}
    for listener, of_listener in sources.items():
        try:
            found[listener] = scenario.parse_sources(of_listener, before)
        except OperatorError as error:
            raise OperatorError(f"listener {listener}: {error}", error.code) from None
        before = (*before, *found[listener])
    return found


def of_listeners(settings: Settings) -> Iterator[Settings]:
    """Yield the settings of the server, and those of each listener that has settings of its own."""
    yield settings
    for listener in settings.listeners:
        if listener.own:
            yield settings.of_listener(listener)


def _check_offer(settings: Settings, where: str = "") -> None:
    """Check what listeners are to offer; errors begin with `where`. Raises OperatorError."""
    try:
        offered = extensions.choose(settings.extensions)
    except ValueError as error:
        raise OperatorError(f"{where}extensions: {error}") from None
    try:
        auth.choose_mechanisms(settings.auth_mechanisms, settings.auth not in ("off", "any"))
    except ValueError as error:
        raise OperatorError(f"{where}auth_mechanisms: {error}") from None
    if settings.auth_required and (settings.auth == "off" or "AUTH" not in offered):
        raise OperatorError(f"{where}auth_required: nobody can authenticate; set auth too, and offer AUTH")


def _warn_about_lmtp(listener: Listener, settings: Settings, warn: Warn) -> None:
    """Warn about a listener that does not do as RFC 2033 5 says, which may be intended."""
    if listener.port == SMTP_PORT:
        warn(f"listener {listener}: LMTP does not belong on port {SMTP_PORT} (RFC 2033 section 5)")
    with suppress(ValueError):  # `_check_offer` gives the reason
        missing = LMTP_EXTENSIONS - extensions.choose(settings.extensions)
        for keyword in sorted(missing):
            warn(f"listener {listener}: LMTP needs {keyword} among its extensions (RFC 2033 section 5)")


def _with_authority(store: RedisServerSettings) -> RedisServerSettings:
    """Return a store with the certificates of its authority, which its workers may be unable to read.

    Raises OperatorError if there is none in the file.
    """
    if not store.ca:
        return store
    try:
        text = tls_configuration.read_pem(store.ca).decode("ascii")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        raise OperatorError(f"there is no certificate in {store.ca}; it must be in PEM") from None
    return replace(store, ca_text=text)


def make(inputs: Inputs, warn: Warn) -> Configuration:
    """Return the configuration that was read, without sockets. Raises OperatorError."""
    settings = inputs.settings
    # The store of the fleet first: the attempt store is the same server where no other one is given.
    for option, store in (("fleet", settings.fleet), ("attempt_store", settings.attempt_store)):
        if store.host:
            redis_errors(option)
    if any(listener.proxy for listener in settings.listeners):
        proxy.make_parser()
    found = Scenario.of(inputs.sources, inputs.read_at)
    active = ActiveScenario(found, own_rules=_own_rules(found.rules, inputs.own_sources))
    tls = tls_configuration.make(settings, inputs.tls, scenario.tls_parameters(active.all_rules), warn)
    dashboard_tls = tls_configuration.make_dashboard(settings, inputs.tls)
    keys = signing_keys(settings)
    return Configuration(settings, tls, inputs.tls.menu, active, {}, [], dashboard_tls, dkim_keys=keys)


def resolve_listeners(settings: Settings) -> None:
    """Ask the resolver for the names of all listeners, so that it answers `open_sockets` at once."""
    addresses = [(asked.host, asked.port) for asked in settings.listeners if not asked.path]
    for host, port in (*addresses, (settings.dashboard.host, settings.dashboard.port)):
        with suppress(OSError):  # `open_sockets` gives the reason
            getaddrinfo(host or None, port)


def open_sockets(
    loaded: Configuration, current: Configuration | None, inherited: list[socket], warn: Warn
) -> Configuration:
    """Return the configuration with its sockets.

    A socket of the current configuration or an inherited one is used where the address is the
    same; others are bound. After an error the sockets that were opened for it are closed.

    Raises OperatorError.
    """
    settings = loaded.settings
    bound: dict[Listener, list[socket]] = {}
    opened = replace(loaded, bound=bound, dashboard_sockets=[], socket_files={})
    try:
        for listener in settings.listeners:
            if listener.path:
                bound[listener] = _open_unix_socket(opened, listener, current, inherited)
                continue
            bound[listener] = (
                _kept(current, listener)
                or systemd.take(inherited, listener)
                or _bind(listener, settings, bound, warn if current is None else None)
            )
        if settings.dashboard.host:
            opened.dashboard_sockets[:] = (
                _kept_dashboard(current, settings.dashboard)
                or systemd.take(inherited, settings.dashboard)
                or _bind_dashboard(settings, warn, current is None)
            )
        systemd.reject_unclaimed(inherited)
    except OperatorError:
        close(opened.sockets - (current.sockets if current else set()))
        remove_files(opened, current)
        raise
    return opened


def _open_unix_socket(
    opened: Configuration, listener: Listener, current: Configuration | None, inherited: list[socket]
) -> list[socket]:
    """Return the socket of a listener, and note its file if this server has made it. Raises OperatorError."""
    if sockets := _kept(current, listener):
        file = current.socket_files.get(listener.path) if current else None
        if file is not None:
            opened.socket_files[listener.path] = file
            unix_sockets.update_permissions(listener, file)
        return sockets
    if sockets := systemd.take(inherited, listener):
        return sockets
    settings = opened.settings
    listening, opened.socket_files[listener.path] = unix_sockets.bind(
        listener, settings.backlog, {int(settings.user)}
    )
    return [listening]


def remove_files(old: Configuration, new: Configuration | None) -> None:
    """Remove the files of UNIX sockets that a configuration has and another one has not."""
    for path, file in old.socket_files.items():
        if new is None or new.socket_files.get(path) != file:
            file.remove()


def _kept(current: Configuration | None, asked: Listener) -> list[socket]:
    """Return the sockets that `current` has for a listener, or for another one with its address."""
    if current is None:
        return []
    by_address = {
        (listener.host, listener.port, listener.path): sockets for listener, sockets in current.bound.items()
    }
    return current.bound.get(asked) or by_address.get((asked.host, asked.port, asked.path), [])


def _kept_dashboard(current: Configuration | None, asked: DashboardAddress) -> list[socket]:
    if current is None:
        return []
    before = current.settings.dashboard
    return current.dashboard_sockets if (before.host, before.port) == (asked.host, asked.port) else []


def _bind(address: Address, settings: Settings, others: Iterable[Address], warn: Warn | None) -> list[socket]:
    """Return the sockets of an address. Raises OperatorError.

    With `warn`, children of a killed master that keep the port are ended first, which may take seconds.
    """
    others = tuple(others)
    try:
        return acceptor.bind(address, settings.backlog, others)
    except AddressInUseError:
        users = {os.geteuid(), int(settings.user)} if os.geteuid() == 0 else {os.geteuid()}
        found = orphans.search(address.port, users) if warn is not None else []
        if warn is None or not found:
            raise
        for line in orphans.end_listening(found):
            warn(line)
        return acceptor.bind(address, settings.backlog, others)


def _bind_dashboard(settings: Settings, warn: Warn, starts: bool) -> list[socket]:
    """Return the sockets of the dashboard; none if its address is the default one and in use."""
    try:
        return _bind(settings.dashboard, settings, settings.listeners, warn if starts else None)
    except OperatorError as error:
        if settings.origins.get("dashboard") != "default":
            raise
        warn(f"no dashboard: {error}; --dashboard ADDRESS:PORT moves it, --dashboard off turns it off")
        return []


def close(sockets: Iterable[socket]) -> None:
    """Close listening sockets in this process."""
    for listening in sockets:
        listening.close()
