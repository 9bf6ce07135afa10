"""TLS of a configuration: the certificates that are read or issued, and the contexts made of them."""

from __future__ import annotations

import ssl
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

from blackhole import input_file
from blackhole.net import menu_certificates
from blackhole.net.menu_certificates import MenuCertificates
from blackhole.net.tls import CertificateAndKey, PEMFile, TLSContexts, make_context
from blackhole.settings import Listener, OperatorError, Settings
from blackhole.tls_menu import AUTO_CERTIFICATE, GOOD, MENU_BY_NAME_ASKED, NO_ENTRY, TLS_MENU, TLSParameters

PATHS: Final = ("ssl_cert", "ssl_key", "client_ca")
"""Settings of listeners that name files of TLS."""

DASHBOARD_PATHS: Final = ("dashboard_cert", "dashboard_key")

HTTP: Final = "http/1.1"
"""The name of what the dashboard speaks (RFC 7301 6)."""


class TLSInputs(NamedTuple):
    """What was read and issued. It can be sent from one process to another."""

    files: Mapping[str, PEMFile]
    """By path."""
    menu: MenuCertificates | None
    """None where nothing needs it."""


class DashboardTLS(NamedTuple):
    """How the dashboard does TLS."""

    context: ssl.SSLContext
    certificate: str
    """As PEM, so that other commands of this machine know it."""


def read(
    settings: Settings, of_rules: Collection[TLSParameters], issued: MenuCertificates | None
) -> TLSInputs:
    """Read files, and issue the certificates of the menu if something needs them. Raises OperatorError.

    `of_rules` is how rules have the handshake done. `issued` are certificates from before a reload, which
    stay in use as long as the names of the server do.
    """
    of_listeners = [settings.of_listener(listener) for listener in settings.listeners]
    paths = {getattr(one, name) for one in of_listeners for name in PATHS}
    paths |= {getattr(settings, name) for name in DASHBOARD_PATHS}
    files = {path: PEMFile(path, read_pem(path)) for path in paths - {"", AUTO_CERTIFICATE}}
    is_issued_for_dashboard = settings.dashboard_cert == AUTO_CERTIFICATE
    why = why_needed(of_listeners, of_rules)
    if is_issued_for_dashboard:
        why = why or f"dashboard_cert = {AUTO_CERTIFICATE}"
    if not why:
        return TLSInputs(files, None)
    names = [one.hostname for one in (settings, *of_listeners)]
    if is_issued_for_dashboard:
        names += [*settings.dashboard.names, *({settings.dashboard.host} - {*EVERY_ADDRESS})]
    hostnames = tuple(dict.fromkeys(names))
    if issued is None or issued.hostnames != hostnames:
        issued = menu_certificates.issue(hostnames, why)
    return TLSInputs(files, issued)


EVERY_ADDRESS: Final = ("0.0.0.0", "::")
"""Addresses that no certificate can be for."""


def why_needed(of_listeners: Collection[Settings], of_rules: Collection[TLSParameters]) -> str:
    """Return what needs the certificates of the menu; empty if nothing does.

    Raises OperatorError for rules where no listener has TLS.
    """
    with_tls = [one for one in of_listeners if one.ssl_cert]
    if of_rules and not with_tls:
        raise OperatorError(f"scenario: {_first(min(of_rules))} needs TLS; give ssl_cert too")
    for one in with_tls:
        if one.ssl_cert == AUTO_CERTIFICATE:
            return f"ssl_cert = {AUTO_CERTIFICATE}"
        if one.tls_menu != NO_ENTRY:
            return f"tls_menu = {one.tls_menu}"
    named = [one for one in of_rules if one.certificate]
    return f"scenario: {_first(min(named))}" if named else ""


def _first(parameters: TLSParameters) -> str:
    """Return the first of the parameters as it stands in a scenario."""
    name, value = next(
        (name, value) for name, value in zip(parameters._fields, parameters, strict=True) if value
    )
    return f'{"then" if name == "fault" else name} = "{value}"'


def read_pem(path: str) -> bytes:
    """Return what is in a file, without a byte order mark. Raises OperatorError."""
    try:
        return input_file.read(path).octets.removeprefix(BOM_UTF8)
    except OSError as error:
        raise OperatorError(f"cannot read {path}: {error.strerror}") from None


def make(
    settings: Settings,
    inputs: TLSInputs,
    of_rules: Collection[TLSParameters],
    warn: Callable[[str], None],
) -> Mapping[Listener, TLSContexts]:
    """Return the contexts of each listener that has TLS. Raises OperatorError.

    All that rules and the menu may ask for are made here, so that every mistake shows before the start.
    """
    found: dict[Listener, TLSContexts] = {}
    made: dict[tuple[Any, ...], TLSContexts] = {}
    for listener in settings.listeners:
        own = settings.of_listener(listener)
        if own.ssl_cert:
            kind = (own.tls_parameters, own.tls_menu, *(getattr(own, name) for name in PATHS))
            if kind not in made:
                made[kind] = _contexts(own, inputs, of_rules, warn)
            found[listener] = made[kind]
    return found


def make_dashboard(settings: Settings, inputs: TLSInputs) -> DashboardTLS | None:
    """Return how the dashboard does TLS; None if it has none. Raises OperatorError."""
    if not settings.dashboard_cert:
        return None
    if settings.dashboard_cert == AUTO_CERTIFICATE:
        assert inputs.menu is not None
        issued = PEMFile(f"the certificate {GOOD}", inputs.menu.pem[GOOD])
        certificate = CertificateAndKey(issued, issued)
    else:
        cert = inputs.files[settings.dashboard_cert]
        certificate = CertificateAndKey(cert, inputs.files[settings.dashboard_key or settings.dashboard_cert])
    return DashboardTLS(make_context(certificate, protocol=HTTP), certificate.cert.first_certificate)


def _contexts(
    settings: Settings,
    inputs: TLSInputs,
    of_rules: Collection[TLSParameters],
    warn: Callable[[str], None],
) -> TLSContexts:
    """Return the contexts of a listener with these settings."""
    files, menu = inputs.files, inputs.menu
    certificate = None
    if settings.ssl_cert != AUTO_CERTIFICATE:
        certificate = CertificateAndKey(
            files[settings.ssl_cert], files[settings.ssl_key or settings.ssl_cert]
        )
    authority = files[settings.client_ca] if settings.client_ca else None
    if authority is None and menu is not None:
        authority = PEMFile("the authority of the TLS menu", menu.authority)
    if settings.client_cert != "off":
        check_authority(settings, settings.tls_parameters)
    contexts = TLSContexts(certificate, settings.tls_parameters, {} if menu is None else menu.pem, authority)
    for parameters in sorted(of_rules):
        check_authority(settings, parameters)
        contexts.get(parameters)
    if settings.tls_menu == MENU_BY_NAME_ASKED:
        for entry in TLS_MENU:
            try:
                contexts.get(entry.parameters)
                contexts.entries[entry.name] = entry.parameters
            except OperatorError as error:
                warn(f"tls_menu: there is no entry {entry.name}: {error}")
    return contexts


def check_authority(settings: Settings, parameters: TLSParameters) -> None:
    """Raise OperatorError if clients are asked for certificates that no known authority has signed."""
    if parameters.client_cert not in ("", "off") and not settings.client_ca:
        raise OperatorError("client_cert needs client_ca, the authorities of the certificates of clients")
