"""The namespaces of one listener in one worker: their rules, and the connections that count for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tornado.iostream import IOStream

from blackhole.net.connection import Connection
from blackhole.net.namespace_accounts import AccountedCells, NamespaceAccounts, NamespaceScenario
from blackhole.net.recorded_connection import RecordedConnection
from blackhole.rules.evaluator import RulePolicy
from blackhole.rules.namespaces import NamespaceEvaluator, NamespacePolicy
from blackhole.store.active_scenario import ActiveScenario

if TYPE_CHECKING:
    from blackhole.net.context import ListenerContext

NO_NAMESPACES: Final[Mapping[bytes, NamespaceScenario]] = {}


def listener_key(address: str) -> bytes:
    """Return the name of the namespace that a listener chooses: its port, or the name of its socket.

    >>> listener_key("[::1]:2526"), listener_key("unix:/run/blackhole/checkout.sock")
    (b'2526', b'checkout')
    """
    if address.startswith("unix:"):
        return os.path.splitext(os.path.basename(address))[0].lower().encode()
    return address.rpartition(":")[2].encode()


class ServerNamespaces:
    """The namespaces of a listener.

    `keys` choose a namespace, `key` is what chooses it by the listener, and `found` are those that there are.
    """

    def __init__(
        self,
        keys: Sequence[str],
        key: bytes,
        accounts: NamespaceAccounts,
        found: Mapping[bytes, NamespaceScenario],
    ) -> None:
        self._keys, self._key, self._accounts = keys, key, accounts
        self._found = found
        self._policies: dict[bytes, tuple[ActiveScenario, RulePolicy]] = {}

    def update(self, found: Mapping[bytes, NamespaceScenario]) -> None:
        """Learn which namespaces there are, and what is in force in them."""
        self._found = found

    @property
    def scenarios(self) -> Iterator[ActiveScenario]:
        """The scenarios of all namespaces."""
        return (one.scenario for one in self._found.values())

    @property
    def may_refuse(self) -> bool:
        """Whether a rule of some namespace may refuse, delay or cut off a message."""
        return any(policy.rules.may_refuse for _, policy in self._policies.values())

    def policy(self, default: RulePolicy, make: Callable[[ActiveScenario], RulePolicy]) -> NamespacePolicy:
        """Return the policy of the listener; `make` returns that of a scenario."""
        policies: dict[bytes, tuple[ActiveScenario, RulePolicy]] = {}
        for name, (_, scenario) in self._found.items():
            known = self._policies.get(name)
            same = known is not None and known[0] is scenario
            policies[name] = known if known is not None and same else (scenario, make(scenario))
        self._policies = policies
        by_name = {name: policy for name, (_, policy) in policies.items()}
        return NamespacePolicy(default, by_name, self._keys, self._key)

    def connection_type(self, listener: int, is_recorded: bool) -> Callable[..., Connection]:
        """Return what makes the connections of the listener, whose counter of connections is given."""
        made = NamespacedRecordedConnection if is_recorded else NamespacedConnection

        def make(
            stream: IOStream, peer: str, context: ListenerContext, on_close: Callable[[Connection], None]
        ) -> Connection:
            return made(stream, peer, context, on_close, self._accounts, listener)

        return make


class NamespacedConnection(Connection):
    """A connection that counts for a namespace too."""

    __slots__ = ("_cells", "_own_context")

    def __init__(
        self,
        stream: IOStream,
        peer: str,
        context: ListenerContext,
        on_close: Callable[[Connection], None],
        accounts: NamespaceAccounts,
        listener: int,
    ) -> None:
        self._cells = AccountedCells(context.counters, accounts, listener)
        super().__init__(stream, peer, context, on_close)

    @property
    def context(self) -> ListenerContext:
        """What the connections of the listener share, with counters that also count for the namespace."""
        return self._own_context

    @context.setter
    def context(self, context: ListenerContext) -> None:
        self._own_context = replace(context, counters=self._cells)

    def share_local_address(self) -> None:
        super().share_local_address()
        policy = self.session.policy
        assert isinstance(policy, NamespaceEvaluator)
        policy.watch(self._cells.choose)

    def _end(self, sent: bytes) -> None:
        super()._end(sent)
        self._cells.end()


class NamespacedRecordedConnection(NamespacedConnection, RecordedConnection):
    """The same where transactions are recorded."""

    __slots__ = ()


def namespace_of(policy: NamespaceEvaluator, ended: bool) -> bytes:
    """Return the namespace of a transaction: see `smtp.recorded_session.Recorder`."""
    return policy.namespace_of_transaction(ended)
