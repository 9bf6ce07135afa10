"""Who is refused, kept waiting or cut off, and where: rules over phases, and the first that holds wins.

A rule belongs to phases, holds under conditions, and has a verdict. A mode is a small set of
rules; a scenario brings more, and they come first. Nothing here knows a clock or has dice: a
`RuleContext` is what rules may look at, and whoever fills it has looked at the clock.

What costs: the rules of a listener are sorted by phase once, and by client once for each kind of
client; what is left is found by the address, the header field, the window or the size that it names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import blake2b
from math import ceil
from operator import attrgetter
from struct import Struct
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from blackhole.rules.delays import DelayDistribution
from blackhole.rules.limiters import NULL_STORE, AttemptStore, Greylist, Limiter, PendingAnswer, Slot
from blackhole.rules.patterns import Comparison, GlobIndex, GlobSet, LiteralPart, ThresholdIndex, literal_part
from blackhole.smtp.randomness import RandomSource
from blackhole.smtp.replies import BOUNCES, CODES, NextAction, Reply

Draws = tuple[float, float, float, float]
"""What fate has drawn for a rule in a case, each from [0, 1): whether, which reply, and two for how long."""

NO_DRAWS: Final[Draws] = (0.0, 0.0, 0.0, 0.0)

DRAWS: Final = Struct(">4Q")


class RuleContext:
    """All that rules may look at: one client, what it said so far, and what it says now."""

    __slots__ = (
        "at",
        "attempt",
        "client",
        "entered",
        "header",
        "helo",
        "id",
        "listener",
        "phase",
        "recipient",
        "refused",
        "secure",
        "sender",
        "size",
        "spent",
    )

    def __init__(self, listener: str = "", client: str = "", secure: bool = False) -> None:
        self.listener = listener
        """Its address and port, as the operator wrote them."""
        self.client: str = client
        self.secure = secure
        self.phase = "CONNECT"
        self.helo = b""
        self.sender: bytes = b""
        self.recipient: bytes = b""
        """The one being asked for at RCPT; behind it the last that was taken."""
        self.size = 0
        """Octets: as MAIL declared them, at "." as they came."""
        self.header: Sequence[bytes] = ()
        """The fields of the message's header section, unfolded. At "." only, and only if a rule asks."""
        self.attempt = 1
        """How many times this was tried, this time included."""
        self.at = 0.0
        """Seconds since the server started."""
        self.id = 0
        """The transaction's."""
        self.refused = ""
        """MAIL or RCPT, if the last of them was."""
        self.spent: dict[tuple[str, str], int] = {}
        """What this connection has used of its quotas, by what is counted and the rule."""
        self.entered: list[Slot] = []
        """Where this connection counts as being there, for the memory."""

    def secured(self) -> RuleContext:
        """What is known under TLS: who it is, and what cannot be undone (RFC 3207 4.2)."""
        case = RuleContext(self.listener, self.client, True)
        case.spent, case.entered = self.spent, self.entered
        return case

    def tell(self, phase: str, said: bytes = b"", size: int = 0) -> None:
        """What the client says now: an address or a name, and octets, where the phase has them."""
        if phase == "MAIL":
            self.sender, self.recipient, self.refused, self.size = said, b"", "", size
        elif phase == "RCPT":
            self.recipient = said
        elif phase == ".":
            self.size = size
        elif phase in ("HELO", "EHLO", "RSET"):
            self.sender, self.recipient, self.refused = b"", b"", ""
            self.helo = said or self.helo

    @property
    def key(self) -> bytes:
        """What is tried: this phase for this sender and recipient; for this client where there is neither."""
        if self.sender or self.recipient:
            return b"\0".join((self.phase.encode(), self.sender.lower(), self.recipient.lower()))
        return b"\0".join((self.phase.encode(), self.client.encode()))

    @property
    def tried(self) -> bytes:
        """The same, and how many times it was."""
        return b"%b\0%d" % (self.key, self.attempt)


class Condition(NamedTuple):
    """One condition of a rule."""

    key: str
    """As the scenario file names it: the attribute of a Case that it looks at."""
    wanted: str
    """As the operator wrote it."""
    holds: Callable[[RuleContext], bool]
    by: GlobSet | Comparison | None = None
    """How it compares, if it can be found by that."""
    spends: bool = False
    """To ask it changes something."""


STANDING: Final = frozenset(("listener", "client", "tls"))
"""Conditions that can be decided once for a connection, and once more under TLS."""

STEADY: Final = STANDING | {"sender", "recipient", "attempt"}
"""Conditions that hang on nothing but who the client is, and on what its attempts are counted by."""


class Window(NamedTuple):
    """When a rule is in force. All in seconds; the clock starts with the server."""

    name: str
    begin: float
    length: float
    every: float = 0.0
    """From one beginning to the next; 0: it comes once."""
    ramp: float = 0.0
    """How long it takes from the beginning until the rule's chance has risen from 0 to what it is."""

    def share(self, at: float) -> float:
        """0 outside, 1 inside, and between them on the ramp."""
        since = at - self.begin
        if since < 0:
            return 0.0
        if self.every:
            since %= self.every
        if since >= self.length:
            return 0.0
        return min(1.0, since / self.ramp) if self.ramp else 1.0


class Fault(NamedTuple):
    """How a reply leaves, or does not leave, and what becomes of the connection."""

    name: str
    share: float
    """How much of the reply leaves: 0, 0.5, or 1 for all of it."""
    next_action: NextAction = NextAction.READ
    """HANG_UP, RESET or STALL behind it; LISTEN for a drip, which is the only one that goes on."""
    rate: int = 0
    """Octets a second of a drip."""


FAULTS: Final[Mapping[str, Fault]] = MappingProxyType(
    {
        fault.name: fault
        for fault in (
            Fault("close", 0, NextAction.CLOSE),
            Fault("reset", 0, NextAction.RESET),
            Fault("stall", 0, NextAction.HANG),
            Fault("half-reply", 0.5, NextAction.CLOSE),
            Fault("close-before-reply", 0, NextAction.CLOSE),
            Fault("close-after-reply", 1, NextAction.CLOSE),
        )
    }
)
"""What may stand behind `next_action`. The first three come in place of the command: it is not done, and
the rule's own reply, where it has one, leaves before them. With the others the command is done."""

CERTIFICATES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "expired": "for this host, and out of date for a year",
        "wrong-name": "for another host",
    }
)
"""Certificates that no client should trust, and what is wrong with them."""

REPLACES_COMMAND: Final = frozenset(("close", "reset", "stall"))


BLANKS: Final = re.compile(r"\{(client|helo|sender|recipient|id)\}")

LONGEST_LINE: Final = 500
"""Octets. RFC 5321 4.5.3.1.5 has 512 with the code before and the line end behind."""


class Template:
    """A reply with blanks for what is known of a case: {client}, {helo}, {sender}, {recipient}, {id}."""

    __slots__ = ("code", "enhanced", "lines")

    def __init__(self, code: int, enhanced: str, *lines: str) -> None:
        self.code: Final = code
        self.enhanced: Final = enhanced
        self.lines: Final = lines

    def fill(self, case: RuleContext) -> Reply:
        """The reply. What a client said comes back as printable ASCII, whatever it was."""

        def value(blank: re.Match[str]) -> str:
            found = getattr(case, blank[1])
            text = f"{found:010X}" if isinstance(found, int) else found
            text = text.decode("latin-1") if isinstance(text, bytes) else text
            return re.sub("[^ -~]", "?", text)

        lines = (BLANKS.sub(value, line)[:LONGEST_LINE] for line in self.lines)
        return Reply(self.code, self.enhanced, *lines, next_action=action_after(self.code))


def action_after(code: int) -> NextAction:
    """What a reply with this code means for the connection (RFC 5321 3.8)."""
    return NextAction.CLOSE if code == 421 else NextAction.READ


class Effect(NamedTuple):
    """What a rule says to do. One that says nothing means: go on, and ask no further rule."""

    replies: tuple[Reply | Template, ...] = ()
    """To pick one from. One of 2xx is said when the command was done, any other in its place."""
    delay: DelayDistribution | None = None
    fault: Fault | None = None
    instead: bool = False
    """The fault comes in place of the command."""
    hide: tuple[str, ...] = ()
    """EHLO keywords that are not offered."""
    add: tuple[str, ...] = ()
    """EHLO lines that are offered besides."""
    certificate: str = ""
    """A name of CERTIFICATES: what the handshake shows in place of ours."""

    def pick(self, lot: float, case: RuleContext) -> Reply | None:
        """The reply, if there is one."""
        if not self.replies:
            return None
        picked = self.replies[int(lot * len(self.replies))]
        return picked.fill(case) if isinstance(picked, Template) else picked

    @property
    def drawn(self) -> bool:
        """Whether chance has a part in it."""
        return len(self.replies) > 1 or (self.delay is not None and self.delay.drawn)


@lru_cache(maxsize=1024)
def keyed_hash(seed: int, name: str) -> blake2b:
    """What a rule of that name draws from, begun: with it a draw takes 1.5 microseconds, without 2.3."""
    return blake2b(name.encode() + b"\0", digest_size=32, key=b"%d" % seed)


MAILING: Final = frozenset(("MAIL", "RCPT", "DATA", "."))
"""Phases in which a message is taken or not."""


@dataclass(frozen=True, slots=True)
class Rule:
    """In its phases, and where all its tests hold, its verdict; or, with probability 1 - chance, none."""

    phases: frozenset[str]
    effect: Effect
    tests: tuple[Condition, ...] = ()
    chance: float = 1.0
    window: Window | None = None
    name: str = ""
    """Its own, or its number: what its draws hang on, besides the case."""
    seed: int | None = None
    """None: draws are thrown with the session's dice."""
    gate: Limiter | None = None
    """A condition that remembers: the rule speaks where it is shut."""
    when_unknown: Effect | None = None
    """What it says where the memory has no answer; None: nothing."""
    cell: int = 0
    """Where it is counted that it spoke; 0: nowhere."""

    @property
    def drawn(self) -> bool:
        """Whether chance has a part in it."""
        return self.chance < 1.0 or self.effect.drawn or (self.window is not None and self.window.ramp > 0)

    @property
    def counts(self) -> bool:
        """Whether it has to be known how many times this was tried."""
        return any(test.key == "attempt" for test in self.tests) or (self.seed is not None and self.drawn)

    @property
    def steady(self) -> bool:
        """Whether it is for the same addresses from the same client always, whatever else is said."""
        return all(test.key in STEADY for test in self.tests)

    @property
    def remembers(self) -> bool:
        """Whether it needs a memory."""
        return self.counts or self.gate is not None

    @property
    def may_refuse(self) -> bool:
        """Whether mail may not be taken because of it, or not at once, or not for sure."""
        effect = self.effect
        return not self.phases.isdisjoint(MAILING) and bool(
            effect.fault or effect.delay or any(said.code >= 400 for said in effect.replies)
        )

    def draws(self, tried: bytes, random_source: RandomSource) -> Draws:
        """The draws. With a seed they are the same in every process and every run: a keyed hash of what is
        tried."""
        if self.seed is None:
            return (
                random_source.random(),
                random_source.random(),
                random_source.random(),
                random_source.random(),
            )
        drawing = keyed_hash(self.seed, self.name).copy()
        drawing.update(tried)
        first, second, third, fourth = DRAWS.unpack(drawing.digest())
        # 53 of the 64 bits: as many as a float has.
        return (first >> 11) / 2**53, (second >> 11) / 2**53, (third >> 11) / 2**53, (fourth >> 11) / 2**53

    def decision(self, shut: bool | None, draws: Draws) -> Decision | None:
        """What it says, once it is known whether its gate is shut, or that nobody knows."""
        effect = self.when_unknown if shut is None else self.effect if shut else None
        return None if effect is None else Decision(effect, draws, self.cell)

    def blind(self) -> Rule | None:
        """What is left of it where nobody knows how often anything was tried."""
        tests = tuple(test for test in self.tests if test.key != "attempt")
        if len(tests) == len(self.tests):
            return self
        if self.when_unknown is None:
            return None
        return replace(self, tests=tests, effect=self.when_unknown, gate=None)

    def odds(self, at: float) -> float:
        """How likely it is to speak now, if its tests hold."""
        return self.chance if self.window is None else self.chance * self.window.share(at)


class Decision(NamedTuple):
    """A verdict, and what was drawn for it."""

    effect: Effect
    draws: Draws
    cell: int = 0
    """Where it is counted."""


class PendingDecision(NamedTuple):
    """What is said hangs on an answer that is still to come."""

    later: PendingAnswer
    learn: Callable[[Any], Decision | PendingDecision | None]
    """Told the answer, or None where there is none: what is said then."""


Tested = tuple[tuple[Callable[[RuleContext], bool], ...], Rule, bool]
"""What has to hold, the rule, and whether it wants to know how often this was tried."""


def asked(rule: Rule, but: Set[str]) -> tuple[Callable[[RuleContext], bool], ...]:
    """What has to hold, but for conditions of these keys."""
    return tuple(test.holds for test in rule.tests if test.key not in but)


INDEXED: Final = ("recipient", "sender", "helo")
"""Attributes of a Case by which rules can be found."""

INDEX_THRESHOLD: Final = 4
"""Rules that are asked one by one sooner than found."""


class RuleTable:
    """The rules of one phase for one kind of client, in their order."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        alone = tuple(rules)
        self._rules: Final = tuple((asked(rule, STANDING), rule, rule.counts) for rule in alone)
        self._bare: Final = tuple((asked(rule, STANDING | {"attempt"}), rule, rule.counts) for rule in alone)
        """Asked without knowing how often anything was tried."""
        self._blind: RuleTable | None = None
        self.counts: Final = any(rule.counts for rule in alone)
        self._moody: Final = any(rule.counts and not rule.steady for rule in alone)
        self.timed: Final = any(rule.window is not None or rule.remembers for rule in alone)
        self._spends: Final = any(test.spends for rule in alone for test in rule.tests)
        loose = dict(enumerate(alone))
        self._indexes: Final[list[tuple[Callable[[RuleContext], bytes], GlobIndex]]] = []
        for field in INDEXED:
            named = {number: found for number, rule in loose.items() if (found := globs(rule, field).anchors)}
            if len(named) >= INDEX_THRESHOLD:
                self._indexes.append((attrgetter(field), GlobIndex(named)))
                for number in named:
                    del loose[number]
        self._fields: Final[dict[bytes, GlobIndex]] = {}
        """By the name of a header field."""
        fielded = {number: known for number, rule in loose.items() if (known := fields(rule))}
        if len(fielded) >= INDEX_THRESHOLD:
            for name in {name for known in fielded.values() for name in known}:
                self._fields[name] = GlobIndex(
                    {number: known[name] for number, known in fielded.items() if name in known}
                )
            for number in fielded:
                del loose[number]
        self._windows: Final[dict[Window, tuple[int, ...]]] = {}
        """Rules that are found by the hour. Those that count do so at any time."""
        timed = {number: rule.window for number, rule in loose.items() if rule.window and not rule.counts}
        if len(timed) >= INDEX_THRESHOLD:
            for number, window in timed.items():
                self._windows[window] = (*self._windows.get(window, ()), number)
                del loose[number]
        sized = {
            number: test.by
            for number, rule in loose.items()
            for test in rule.tests
            if isinstance(test.by, partial)
        }
        self._sizes: Final = ThresholdIndex(sized) if len(sized) >= INDEX_THRESHOLD else None
        if self._sizes is not None:
            for number in sized:
                del loose[number]
        self._loose: Final = tuple(loose)
        """The numbers of those that cannot be found."""
        self._sorted: Final = len(loose) < len(alone)

    def _near(self, case: RuleContext, rules: Sequence[Tested]) -> Sequence[Tested]:
        """Those of these, which are all, that may hold, in their order."""
        if not self._sorted:
            return rules
        found = self._loose
        for text, index in self._indexes:
            found += index.find(text(case).lower())
        if self._fields:
            for field in case.header:
                name, _, value = field.lower().partition(b":")
                if name in self._fields:
                    found += self._fields[name].find(value)
        for window, numbers in self._windows.items():
            if window.share(case.at):
                found += numbers
        if self._sizes is not None:
            found += self._sizes.find(case.size)
        return [rules[number] for number in sorted({*found})] if found else ()

    def silent(self, case: RuleContext) -> bool:
        """Whether no rule can speak now, whatever chance and memory say, nor wants this to be counted. To ask
        changes nothing."""
        if self._moody or self._spends:
            return False
        for tests, rule, counts in self._near(case, self._bare):
            for holds in tests:
                if not holds(case):
                    break
            else:
                if counts or rule.odds(case.at):
                    return False
        return True

    def counted(self, case: RuleContext) -> bool:
        """Whether it has to be counted how many times this was tried.

        Not where each rule that asks for it is for other addresses: what is counted has an address, so that
        rule never comes to know it.
        """
        return self._moody or (
            self.counts
            and any(
                counts and all(holds(case) for holds in tests)
                for tests, _, counts in self._near(case, self._bare)
            )
        )

    @property
    def blind(self) -> RuleTable:
        """The same, where nobody knows how often anything was tried."""
        if self._blind is None:
            self._blind = RuleTable(left for _, rule, _ in self._rules if (left := rule.blind()))
        return self._blind

    def find(
        self,
        case: RuleContext,
        random_source: RandomSource,
        memory: AttemptStore = NULL_STORE,
        rules: Iterator[Tested] | None = None,
    ) -> Decision | PendingDecision | None:
        """The first rule that holds, and its draws; None: the case is nobody's. `rules` are left to ask."""
        if rules is None:
            rules = iter(self._near(case, self._rules))
        tried = b""
        for tests, rule, _ in rules:
            for holds in tests:
                if not holds(case):
                    break
            else:
                odds = rule.odds(case.at)
                if not odds:
                    continue
                draws = NO_DRAWS
                if rule.drawn:
                    tried = tried or case.tried
                    draws = rule.draws(tried, random_source)
                if draws[0] >= odds:
                    continue
                shut = rule.gate is None or rule.gate.stops(rule.name, case, memory)
                if shut is True:
                    return Decision(rule.effect, draws, rule.cell)
                if isinstance(shut, PendingAnswer):
                    return PendingDecision(
                        shut, partial(self._learn, rule, draws, case, random_source, memory, rules)
                    )
                if shut is None and rule.when_unknown is not None:
                    return Decision(rule.when_unknown, draws, rule.cell)
        return None

    def _learn(
        self,
        rule: Rule,
        draws: Draws,
        case: RuleContext,
        random_source: RandomSource,
        memory: AttemptStore,
        rules: Iterator[Tested],
        shut: bool | None,
    ) -> Decision | PendingDecision | None:
        """It is known now whether the gate of a rule is shut, or that nobody knows: go on from there."""
        return rule.decision(shut, draws) or self.find(case, random_source, memory, rules)


def globs(rule: Rule, key: str) -> GlobSet:
    """Those of the rule's condition with this key; none where it has none."""
    found = (test.by for test in rule.tests if test.key == key and isinstance(test.by, GlobSet))
    return next(found, GlobSet(()))


def fields(rule: Rule) -> dict[bytes, frozenset[LiteralPart]]:
    """By the name of a header field, what its value must have for the rule to hold; empty: nothing that can
    be named."""
    found: dict[bytes, frozenset[LiteralPart]] = {}
    for glob in globs(rule, "header").globs:
        name, _, value = glob.partition(":")
        known = literal_part(value)
        if known is None or "*" in name or "?" in name:
            return {}
        found[name.encode()] = found.get(name.encode(), frozenset()) | {known}
    return found


Tables = Mapping[str, RuleTable]
"""Phase -> table."""

MAX_CLIENT_KINDS: Final = 256
"""Kinds of clients whose tables are kept: more kinds than this are made by an attacker, or by mistake."""


class Policy:
    """All rules of one listener: a scenario's, and behind them the mode's."""

    def __init__(self, rules: Sequence[Rule], mode: str, listener: str = "") -> None:
        here = RuleContext(listener)
        self.rules: Final = tuple(
            rule
            for rule in (*rules, *MODES[mode])
            if all(test.holds(here) for test in rule.tests if test.key == "listener")
        )
        self.listener: Final = listener
        self.phases: Final = frozenset(phase for rule in self.rules for phase in rule.phases)
        """Where a rule may speak."""
        keyed = {test.key for rule in self.rules for test in rule.tests}
        self.remembers: Final = len(self.rules) > len(MODES[mode]) or any(rule.gate for rule in self.rules)
        """Whether names and addresses have to be kept from one command to the next."""
        self.watches: Final = any(rule.may_refuse for rule in self.rules)
        """Whether it has to be seen what comes again."""
        self.reads_header: Final = "header" in keyed
        self.certificates: Final = frozenset(rule.effect.certificate for rule in self.rules) - {""}
        """What has to be made for the rules."""
        self._choosy: Final = not keyed.isdisjoint(("client", "tls"))
        self._made: Final[dict[tuple[bool, ...], Tables]] = {}

    def tables(self, case: RuleContext) -> Tables:
        """The rules that this client can ever meet, by phase."""
        kind: tuple[bool, ...] = ()
        if self._choosy:
            kind = tuple(
                all(test.holds(case) for test in rule.tests if test.key in STANDING) for rule in self.rules
            )
        found = self._made.get(kind)
        if found is None:
            if len(self._made) >= MAX_CLIENT_KINDS:
                self._made.clear()
            rules = [rule for rule, met in zip(self.rules, kind, strict=True) if met] if kind else self.rules
            found = {
                phase: RuleTable(rule for rule in rules if phase in rule.phases)
                for phase in {phase for rule in rules for phase in rule.phases}
            }
            self._made[kind] = found
        return found


GREYLISTED: Final = Reply(450, "4.7.1", "Greylisted, try again later")

DEFAULT_GREYLIST: Final = Greylist(300, 2 * 86400)
"""The five minutes and two days of postgrey."""

MODES: Final[Mapping[str, tuple[Rule, ...]]] = MappingProxyType(
    {
        "accept": (),
        "bounce": (Rule(frozenset("."), Effect(BOUNCES)),),
        "random": (Rule(frozenset("."), Effect(BOUNCES), chance=0.5),),
        "greylist": (
            Rule(frozenset(("RCPT",)), Effect((GREYLISTED,)), name="greylist", gate=DEFAULT_GREYLIST),
        ),
        "unavailable": (Rule(frozenset(("CONNECT",)), Effect((CODES[421],))),),
        "offline": (Rule(frozenset(("CONNECT",)), Effect((CODES[521],))),),
    }
)


def mask_ehlo(offer: Reply, effect: Effect) -> Reply:
    """The answer to EHLO without the keywords that are hidden, and with those that are added."""
    hidden = {keyword.upper() for keyword in effect.hide}
    host, *lines = offer.lines
    shown = (line for line in lines if line.split(" ")[0].upper() not in hidden)
    return Reply(offer.code, offer.enhanced, host, *shown, *effect.add, next_action=offer.next_action)


def partial_reply(wire: bytes, share: float) -> bytes:
    """As much of a reply as leaves."""
    return wire[: ceil(len(wire) * share)]
