"""The keys of a scenario file: how each value is read, and where a key may stand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from operator import attrgetter
from typing import Any, Final, NamedTuple

from blackhole.addresses import NetworkSet, to_bytes
from blackhole.rules.comparisons import Comparison
from blackhole.rules.context import RuleContext
from blackhole.rules.faults import NUMBERED_FAULTS
from blackhole.rules.globs import GlobSet
from blackhole.rules.limiter_readers import (
    GREYLIST_KEYS,
    THROTTLE_KEYS,
    THROTTLED_AT,
    read_greylist,
    read_throttle,
)
from blackhole.rules.named_parts import NamedGlobs
from blackhole.rules.tls_readers import (
    read_certificate,
    read_ciphers,
    read_client_certificate,
    read_tls_version,
)
from blackhole.rules.value_readers import (
    DELAY_KEYS,
    Operands,
    read_chance,
    read_comparison,
    read_delay,
    read_ehlo_keywords,
    read_extensions,
    read_fault,
    read_globs,
    read_header,
    read_listener,
    read_named_globs,
    read_networks,
    read_operands,
    read_phases,
    read_replies,
    read_seconds,
    read_switch,
    read_text,
    read_tls_versions,
    read_weights,
    read_when_unknown,
    read_zone,
)
from blackhole.smtp.state import PHASES
from blackhole.values import did_you_mean, expected, shown

Reader = Callable[[Any], Any]
"""Returns what it made of a TOML value. Raises ValueError that says what was expected."""

Matcher = tuple[Callable[[RuleContext], bool], GlobSet | Comparison | None]
"""Whether a context matches; and what rules with such a condition can be indexed by."""


def _listener_matcher(globs: GlobSet) -> Matcher:
    return lambda context: globs.match(context.listener.encode()), None


def _client_matcher(networks: NetworkSet) -> Matcher:
    return lambda context: to_bytes(context.client) in networks, None


def _tls_matcher(wanted: bool) -> Matcher:
    return lambda context: context.secure is wanted, None


def _sni_matcher(globs: GlobSet) -> Matcher:
    return lambda context: globs.match(context.server_name), globs


def _helo_matcher(globs: GlobSet) -> Matcher:
    return lambda context: globs.match(context.helo), globs


def _sender_matcher(globs: GlobSet) -> Matcher:
    return lambda context: globs.match(context.sender), globs


def _recipient_matcher(globs: GlobSet) -> Matcher:
    return lambda context: globs.match(context.recipient), globs


def _user_matcher(globs: GlobSet) -> Matcher:
    return lambda context: globs.match(context.user), globs


def _size_matcher(compare: Comparison) -> Matcher:
    return lambda context: compare(context.size), compare


def _header_matcher(globs: GlobSet) -> Matcher:
    return lambda context: any(map(globs.match, context.header)), globs


def _recipients_matcher(compare: Comparison) -> Matcher:
    return lambda context: compare(context.recipients), None


def _message_matcher(compare: Comparison) -> Matcher:
    return lambda context: compare(context.message), None


def _extension_matcher(keywords: frozenset[str]) -> Matcher:
    return lambda context: not keywords.isdisjoint(context.extensions), None


def _tls_version_matcher(versions: frozenset[str]) -> Matcher:
    return lambda context: context.tls_version in versions, None


def _attempt_matcher(compare: Comparison) -> Matcher:
    return lambda context: compare(context.attempt), None


def named_parts_matcher(key: str, globs: NamedGlobs) -> Matcher:
    """Return the condition that a text of the context, which has the name of the key, has named parts."""
    text: Callable[[RuleContext], bytes] = attrgetter(key)
    return lambda context: globs.find(text(context), context.phase) is not None, globs.globs


class ConditionKey(NamedTuple):
    """A key that is a condition."""

    read: Reader
    make: Callable[[Any], Matcher]
    """Makes the condition of the value that was read, unless it has named parts."""
    has_signs: bool = False
    """Whether a "!" before a text negates it."""

    def read_operands(self, value: Any) -> Operands:
        """Read a value. Raises ValueError."""
        return read_operands(self.read, value) if self.has_signs else Operands(self.read(value), value)


CONDITION_KEYS: Final[Mapping[str, ConditionKey]] = {
    "listener": ConditionKey(read_listener, _listener_matcher, True),
    "client": ConditionKey(read_networks, _client_matcher, True),
    "tls": ConditionKey(read_switch, _tls_matcher),
    "tls_version": ConditionKey(read_tls_versions, _tls_version_matcher, True),
    "sni": ConditionKey(read_globs, _sni_matcher, True),
    "helo": ConditionKey(read_named_globs, _helo_matcher, True),
    "sender": ConditionKey(read_named_globs, _sender_matcher, True),
    "recipient": ConditionKey(read_named_globs, _recipient_matcher, True),
    "user": ConditionKey(read_named_globs, _user_matcher, True),
    "extension": ConditionKey(read_extensions, _extension_matcher, True),
    "recipients": ConditionKey(read_comparison, _recipients_matcher),
    "message": ConditionKey(read_comparison, _message_matcher),
    "size": ConditionKey(read_comparison, _size_matcher),
    "header": ConditionKey(read_header, _header_matcher, True),
    "attempt": ConditionKey(read_comparison, _attempt_matcher),
}
"""Conditions, in the order in which they are asked."""


def read_not(value: Any) -> Mapping[str, Operands]:
    """Read a table of conditions of which none may hold."""
    if not isinstance(value, dict) or not value:
        raise expected('a table of conditions, as { sender = "<>" }', value)
    found = {}
    for key, operand in value.items():
        if key not in CONDITION_KEYS:
            raise ValueError(f'unknown condition "{shown(key)}"{did_you_mean(key, CONDITION_KEYS)}')
        try:
            found[key] = CONDITION_KEYS[key].read_operands(operand)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        if found[key].negated is not None:
            raise ValueError(f'{key}: with "!" in not; leave one of the two out')
    return found


LIMITER_KEYS: Final[Mapping[str, Reader]] = {"greylist": read_greylist, "throttle": read_throttle}
"""Conditions that are remembered from one attempt to the next."""

EFFECT_KEYS: Final[Mapping[str, Reader]] = {
    "reply": read_replies,
    "delay": read_delay,
    "then": read_fault,
    "hide": read_ehlo_keywords,
    "add": read_ehlo_keywords,
    "certificate": read_certificate,
    "tls_min": read_tls_version,
    "tls_max": read_tls_version,
    "tls_ciphers": read_ciphers,
    "client_cert": read_client_certificate,
    "blocklist": read_zone,
}
"""What a rule does; it needs one of them."""

RULE_KEYS: Final[Mapping[str, Reader]] = {
    "name": read_text,
    "phase": read_phases,
    **{key: row.read_operands for key, row in CONDITION_KEYS.items()},
    "not": read_not,
    **LIMITER_KEYS,
    "when_unknown": read_when_unknown,
    "chance": read_chance,
    "window": read_text,
    **EFFECT_KEYS,
    "weights": read_weights,
}

WINDOW_KEYS: Final[Mapping[str, Reader]] = {
    "name": read_text,
    "at": read_seconds,
    "for": read_seconds,
    "every": read_seconds,
    "ramp": read_seconds,
}

TABLE_KEYS: Final[Mapping[str, Collection[str]]] = {
    "greylist": GREYLIST_KEYS,
    "throttle": (*THROTTLED_AT, *THROTTLE_KEYS),
    "delay": DELAY_KEYS,
    "then": NUMBERED_FAULTS,
}
"""Keys of a rule whose values may be tables -> the keys of those tables."""


def place_hint(key: str) -> str:
    """Return a hint where a key belongs that is none of a rule; empty for one that belongs nowhere.

    >>> place_hint("per")
    '; it belongs in throttle = { per = ... }'
    """
    places = [f"{table} = {{ {key} = ... }}" for table, keys in TABLE_KEYS.items() if key in keys]
    if key in WINDOW_KEYS:
        places.append("[[window]]")
    return f"; it belongs in {' or '.join(places)}" if places else ""


FILE_KEYS: Final = ("seed", "about", "set", "rule", "window")

NOT_IN_SINGLE_RULE: Final[Mapping[str, str]] = {
    "window": "not in a single rule, which has no windows",
    "chance": "not in a single rule, which matches for certain",
    **dict.fromkeys(LIMITER_KEYS, "not in a single rule; put it into a scenario"),
}
"""Keys that only rules in files have, and why."""

EHLO_LIST_KEYS: Final = ("hide", "add")
"""Keys that change the list of extensions."""

TLS_KEYS: Final = ("certificate", "tls_min", "tls_max", "tls_ciphers", "client_cert")
"""Keys that change how the TLS handshake is done: fields of `TLSParameters`."""

ONE_PHASE_KEYS: Final = {
    **dict.fromkeys(EHLO_LIST_KEYS, "EHLO"),
    **dict.fromkeys(TLS_KEYS, "STARTTLS"),
}
"""Effects that only one phase has."""

LISTED_BY: Final = {
    "client": "Client host [{client}]",
    "helo": "Helo command [{helo}]",
    "sender": "Sender address [{sender}]",
    "recipient": "Recipient address [{recipient}]",
}
"""What the reply of `blocklist` calls what is listed, as Postfix does, by the condition that names it."""

IN_MAIL: Final = frozenset(("MAIL", "RCPT", "DATA", "BDAT", "."))

IN_TRANSACTION: Final = IN_MAIL | {"STARTTLS", "RSET", "NOOP", "VRFY", "EXPN", "HELP", "QUIT", "other"}
"""Phases in which addresses are those of the transaction, and empty outside one."""

COMMAND_KNOWN_AT: Final[Mapping[str, frozenset[str]]] = {
    "helo": frozenset(PHASES) - {"CONNECT"},
    "sni": frozenset(PHASES) - {"STARTTLS"},
    "user": frozenset(PHASES) - {"CONNECT", "STARTTLS"},
    "sender": IN_TRANSACTION,
    "recipient": IN_TRANSACTION - {"MAIL"},
    "extension": IN_MAIL,
    "recipients": IN_MAIL - {"MAIL"},
    "message": IN_MAIL,
    "size": IN_MAIL,
    "header": frozenset("."),
}
"""Conditions on what the client has sent, and the phases in which they are known."""

OWNER_KNOWN_BY: Final[Mapping[str, str]] = {
    "helo": "helo",
    "user": "user",
    "sender": "sender",
    "sender-domain": "sender",
    "recipient": "recipient",
    "recipient-domain": "recipient",
    "pair": "recipient",
}
"""What a limit is counted for -> the condition that is known in the same phases. Others are always known."""


def owners_known_at(owners: Iterable[str]) -> frozenset[str]:
    """Return the phases in which all is known that a limit is counted for."""
    known = (COMMAND_KNOWN_AT[OWNER_KNOWN_BY[name]] for name in owners if name in OWNER_KNOWN_BY)
    return frozenset(PHASES).intersection(*known)
