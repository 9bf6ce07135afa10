"""TLS that rules ask for which are put in force at run time: checked, and with the certificates they need."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from blackhole.net import menu_certificates
from blackhole.net.menu_certificates import MenuCertificates
from blackhole.net.tls import TLSContexts
from blackhole.process import tls_configuration
from blackhole.settings import Settings
from blackhole.tls_menu import TLSParameters


class TLSOrders:
    """What the dashboard knows of TLS: the contexts of the listeners, and the certificates of the menu."""

    def __init__(
        self, settings: Settings, contexts: Collection[TLSContexts], menu: MenuCertificates | None
    ) -> None:
        self._settings: Final = settings
        self._contexts: Final = contexts
        self._menu = menu

    @property
    def authority(self) -> bytes:
        """The authority of the certificates that were issued, as PEM; empty where none were."""
        return b"" if self._menu is None else self._menu.authority

    def certificates(
        self, parameters: Collection[TLSParameters], known: Collection[str]
    ) -> Mapping[str, str]:
        """Return the certificates that rules need besides those that are known, by name, as PEM.

        The workers may have none of the menu, or others after a reload. Raises OperatorError if a handshake
        cannot be done as the rules ask for.
        """
        of_listeners = [self._settings.of_listener(one) for one in self._settings.listeners]
        why = tls_configuration.why_needed(of_listeners, parameters)
        if self._menu is None and why:
            hostnames = tuple(dict.fromkeys(one.hostname for one in (self._settings, *of_listeners)))
            self._menu = menu_certificates.issue(hostnames, why)
        pem = {} if self._menu is None else self._menu.pem
        for contexts in self._contexts:
            contexts.add(pem)
            for one in parameters:
                tls_configuration.check_authority(self._settings, one)
                contexts.get(one)
        wanted = {one.certificate for one in parameters} - {"", *known}
        return {name: pem[name].decode() for name in sorted(wanted)}
