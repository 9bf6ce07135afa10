"""A network of machines that a test makes: a network namespace for each, and a bridge between them."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Self

from tests.external_programs import output_of, path_of

PREFIX = "10.231.7."


class Network:
    """Machines by name. `requires("ip", root=True)` skips a test where it cannot be made.

    with Network("hub", "one") as network:
        output_of(*network.inside("one"), "ping", "-c1", network.address("hub"))
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self._id = f"bh{os.getpid() % 100000}"
        """Begins the name of each namespace; those of two tests that run at the same time differ."""

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _make(self) -> None:
        switch = self._namespace("switch")
        self._ip("netns", "add", switch)
        self._ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        self._ip("-n", switch, "link", "set", "bridge", "up")
        for number, name in enumerate(self.names):
            machine, port = self._namespace(name), f"port{number}"
            self._ip("netns", "add", machine)
            self._ip("-n", switch, "link", "add", port, "type", "veth", "peer", "eth0", "netns", machine)
            self._ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            self._ip("-n", machine, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                self._ip("-n", machine, "link", "set", device, "up")

    def _remove(self) -> None:
        for name in ("switch", *self.names):
            with suppress(AssertionError):
                self._ip("netns", "delete", self._namespace(name))

    def _namespace(self, name: str) -> str:
        return f"{self._id}-{name}"

    @staticmethod
    def _ip(*words: str) -> None:
        output_of(path_of("ip"), *words)

    def address(self, name: str) -> str:
        return f"{PREFIX}{1 + self.names.index(name)}"

    def inside(self, name: str) -> tuple[str, ...]:
        """Return what to put before a command so that a machine runs it."""
        return (path_of("ip"), "netns", "exec", self._namespace(name))

    def cut_off(self, name: str, down: bool = True) -> None:
        """Take a machine off the network, or bring it back."""
        port = f"port{self.names.index(name)}"
        self._ip("-n", self._namespace("switch"), "link", "set", port, "down" if down else "up")
