"""Plays the cases of `verdict_cases`: in which segments a client sends, in which settings a server runs.

A run is a case, a cut and some settings. What the run has to find follows from the case and from a small
model of RFC 2920: a client that sends a command before the reply to the one before is accused of that, and of
what it did without it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple, Self

from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.outcomes import mark_if_never_retried
from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.command_line import MAX_COMMAND_LINE
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.replies import NextAction
from blackhole.smtp.session import Session
from blackhole.store.attempts import AttemptTable
from blackhole.store.outcome_table import OutcomeTable
from tests.engines import VIOLATION_NAMES, make_engine
from tests.remote_store import PendingLookup, RemoteStore

PIPELINING: Final = ("unoffered-pipelining", "pipelined-behind-last", "talk-behind-starttls")
"""The rules about what a client sends before it has seen a reply."""

LAST: Final = (b"EHLO", b"HELO", b"DATA", b"NOOP", b"VRFY", b"EXPN", b"QUIT", b"AUTH", b"STARTTLS")
"""Commands that must be the last of a group (RFC 2920 3.1, RFC 3207 4, RFC 4954 4)."""


# What a client does, step by step.


@dataclass(frozen=True)
class MailData:
    """Octets that the client sends once DATA is answered with 354; `anyway`: with whatever it is answered."""

    octets: bytes
    anyway: bool = False


class Chunk(bytes):
    """BDAT and the octets behind it, which are answered together (RFC 3030 2)."""

    def __new__(cls, octets: bytes, is_last: bool = False) -> Self:
        return super().__new__(cls, b"BDAT %d%s\r\n%s" % (len(octets), b" LAST" * is_last, octets))


class AuthResponse(bytes):
    """A response in an AUTH exchange, after which the client has to wait."""


@dataclass(frozen=True)
class Pipelined:
    """Steps that the client sends in one segment, without waiting for a reply."""

    steps: tuple[bytes | MailData, ...]


@dataclass(frozen=True)
class Reconnect:
    """The connection is closed, and the client connects again after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Handshake:
    """The client does a TLS handshake, if the server has agreed to it."""


Step = bytes | MailData | Pipelined | Reconnect | Handshake

Piece = bytes | MailData

Verdicts = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A client, and the violations that it commits."""

    rule: str
    """The row of the table that it is about."""
    about: str
    steps: tuple[Step, ...]
    verdicts: Verdicts
    """What it commits if it waits for each reply, but for what it sends `Pipelined`."""
    rules: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    legal: Mapping[str, Verdicts | None] = field(default_factory=dict)
    """What differs by setting or cut: the verdicts, or None where the case has no meaning or says nothing.

    The keys are settings, cuts, "unseen" for all cuts in UNSEEN, and "SETTING unseen"."""

    def __str__(self) -> str:
        return f"{self.rule}: {self.about}"

    @property
    def is_guilty(self) -> bool:
        return self.rule in self.verdicts


# In which segments it sends.


def pieces_of(steps: Iterable[Step]) -> list[Piece]:
    """Return the commands and bodies of steps that have neither a handshake nor a new connection."""
    pieces: list[Piece] = []
    for step in steps:
        if isinstance(step, Pipelined):
            pieces += step.steps
        elif isinstance(step, bytes | MailData):
            pieces.append(step)
    return pieces


def alone(steps: Sequence[Step]) -> list[list[Piece]]:
    """Each command in a segment of its own, but what is sent together."""
    return [pieces_of([step]) for step in steps]


def separate(steps: Sequence[Step]) -> list[list[Piece]]:
    """Each command in a segment of its own."""
    return [[piece] for piece in pieces_of(steps)]


def one_segment(steps: Sequence[Step]) -> list[list[Piece]]:
    """All in one segment."""
    return [pieces_of(steps)] if steps else []


def behind_hello(steps: Sequence[Step]) -> list[list[Piece]]:
    """The first command alone, then all else in one segment."""
    pieces = pieces_of(steps)
    return [part for part in (pieces[:1], pieces[1:]) if part]


def tens(steps: Sequence[Step]) -> list[list[Piece]]:
    """Groups of ten."""
    pieces = pieces_of(steps)
    return [pieces[start : start + 10] for start in range(0, len(pieces), 10)]


CUTS: Final = {
    "alone": alone,
    "octets": separate,
    "halves": separate,
    "groups": separate,
    "one segment": one_segment,
    "behind hello": behind_hello,
    "tens": tens,
    "unawaited": separate,
}
"""How a conversation is cut. "octets" and "halves" cut each command too. "groups" joins as many commands as
RFC 2920 allows. "unawaited" sends the next segment while the reply to the one before is held back, so that it
needs a delay."""

UNSEEN: Final = ("one segment", "behind hello", "tens", "unawaited")
"""Cuts in which a client does not see the replies to the commands before."""


USUAL_LINE: Final = re.compile(rb"[A-Za-z0-9*=]++(?: .*)?(?<!\r)\r?\n", re.DOTALL)
"""A command whose verb is read with --strict too."""


def verb_of(command: bytes) -> bytes:
    """Return the verb of a command, in upper case."""
    return b"".join(command.split()[:1]).upper()


# In which settings the server runs.

NEVER_MATCHES: Final = """
[[rule]]
phase = "*"
client = "203.0.113.9"
reply = "451 4.3.0 Later"

[[rule]]
phase = "RCPT"
recipient = "never@never.test"
then = "close"
"""

CHANGES_NOTHING: Final = """
[[rule]]
phase = "*"
reply = "accept"
"""

LOOKED_UP: Final = """
[[rule]]
phase = ["EHLO", "MAIL", "RCPT", "DATA", ".", "RSET", "NOOP", "QUIT"]
attempt = ">= 1000"
reply = "451 4.3.0 Later"
"""
"""A rule that never matches, and for which each command is looked up in a store on another machine."""

EHLO: Final = b"EHLO client.test\r\n"
MAIL: Final = b"MAIL FROM:<ann@a.test>\r\n"
RCPT: Final = b"RCPT TO:<bob@b.test>\r\n"
DATA: Final = b"DATA\r\n"
QUIT: Final = b"QUIT\r\n"
STARTTLS: Final = b"STARTTLS\r\n"
TLS: Final = Handshake()
BODY: Final = MailData(b"Subject: a test\r\n\r\nHello\r\n.\r\n")

BEFORE: Final = 19 * (b"MAIL FROM:<eve@c.test>\r\n", RCPT, DATA, BODY.octets)
"""Nineteen messages without a fault, of a sender whom no rule refuses."""

HELD_BACK: Final = ("delay", "looked up")
"""Settings in which the next segment can come before a reply leaves."""

SETTINGS: Final = (
    *("strict", "delay", "starttls", "implicit tls", "never matches", "changes nothing", "general path"),
    *("looked up", "20th message"),
)
"""What a server is set to, or the client begins with. Any of them may be combined."""


@lru_cache(maxsize=4096)
def engine_for(rules: str, options: tuple[tuple[str, Any], ...]) -> SMTPEngine:
    """Return an engine that several cases may share, as it remembers nothing of its clients."""
    return make_engine(parse_rules(rules, "test") if rules else (), **dict(options))


class Server:
    """The engine of a case in some settings, with a clock that is set by hand."""

    def __init__(self, case: Case, settings: frozenset[str]) -> None:
        rules = case.rules
        rules += NEVER_MATCHES if "never matches" in settings else ""
        rules += LOOKED_UP if "looked up" in settings else ""
        rules += CHANGES_NOTHING if "changes nothing" in settings else ""
        options: dict[str, Any] = {"hostname": "mx.test", "starttls": True, "inspect": "all"}
        options["strict"] = "strict" in settings
        options["delay"] = (1.0, 1.0) if "delay" in settings else None
        options["fast_path"] = "general path" not in settings
        options.update(case.options)
        self.now = 0.0
        self.outcomes = OutcomeTable(sets=64)
        if "looked up" in settings or any(isinstance(step, Reconnect) for step in case.steps):
            store = RemoteStore() if "looked up" in settings else AttemptTable(sets=64)
            environment = RuleEnvironment(lambda: self.now, store, self.outcomes, lambda: self.now)
            made = parse_rules(rules, "test") if rules else ()
            self.engine = make_engine(made, environment=environment, **options)
        else:
            self.engine = engine_for(rules, tuple(sorted(options.items())))
        self.secure = "implicit tls" in settings
        self.strict = options["strict"]

    def never_retried(self) -> list[str]:
        """Return the verdicts on messages that were not sent again."""
        sets = range(64)
        found = sum(sum(self.outcomes.sweep(one, self.now, mark_if_never_retried)) for one in sets)
        return found * ["never-retried"]

    def session(self) -> Session:
        """Return a new session that was greeted."""
        session = self.engine.session(self.secure, "192.0.2.1")
        session.policy.set_local_address(lambda: "192.0.2.25:25")
        session.greet()
        go_on(session)
        return session


def go_on(session: Session, followed: bool = False) -> bytes:
    """Wait for what holds the replies back, and return them. `followed`: the next segment comes meanwhile."""
    out = b""
    while session.next_action in (NextAction.SLEEP, NextAction.LOOKUP):
        if session.next_action is NextAction.SLEEP:
            part = session.resume()
        else:
            lookup = session.pending_lookup
            part = session.resume_with_answer(lookup.answer if isinstance(lookup, PendingLookup) else None)
        out += session.client_sent_early(part) if followed else part
    return out


NAMES: Final = VIOLATION_NAMES


OTHER_PROTOCOL_REPLIES: Final = (b"221 2.7.0", b"501 5.5.1 TLS")


class Event(NamedTuple):
    """What a client does, and how many replies it gets to what it sends."""

    what: str
    octets: bytes = b""
    replies: int = 0


class Run:
    """One run of a case."""

    def __init__(self, case: Case, cut: str, settings: frozenset[str]) -> None:
        self.cut = "alone"
        self.server = Server(case, settings)
        self.connect()
        self.held_back = False
        """A reply to the last segment had to wait."""
        self.found: list[str] = []
        """The verdicts on the connections that are closed."""
        self.expected_more: list[str] = []
        """The verdicts on pipelining that RFC 2920 asks for."""
        self.codes: list[str] = []
        """The codes of the replies."""
        self.log: list[Event] = []
        """What happened on the connection, for a client on a socket to do the same."""
        self.answered = 0
        """Pieces of the conversation that had their effect."""
        self.history: dict[int, list[str]] = {0: []}
        """By number of such pieces, the verdicts so far."""
        if "starttls" in settings:
            self.play((EHLO, STARTTLS, TLS), "alone")
        if "20th message" in settings:
            self.play([EHLO], "alone")
            for octets in BEFORE:
                self.hear(octets, False)
        self.play(case.steps, cut)
        self.close()
        if self.server.now:
            self.found += self.server.never_retried()

    def connect(self) -> None:
        self.session = self.server.session()
        self.pipelining_offered = False

    def play(self, steps: Sequence[Step], cut: str) -> None:
        self.cut = cut
        part: list[Step] = []
        for step in steps:
            if not isinstance(step, Reconnect | Handshake):
                part.append(step)
                continue
            self.play_part(part)
            part = []
            if isinstance(step, Reconnect):
                self.close()
                self.log.append(Event("connect again"))
                self.server.now += step.seconds
                self.connect()
            elif self.session.next_action is NextAction.START_TLS:
                self.session.secured()
                self.log.append(Event("start TLS"))
                self.pipelining_offered = False
        self.play_part(part)

    def verdicts(self) -> list[str]:
        """Return the verdicts so far, but those on the connection after a 421."""
        return self.found + [NAMES[event] for event in self.session.counted_events if event in NAMES]

    def close(self) -> None:
        """Close the connection, and collect the verdicts on it."""
        self.session.closed()
        self.found = self.verdicts()
        if self.session.after_421 is not None and self.session.after_421.talked:
            self.found.append("talk-after-421")

    def play_part(self, steps: Sequence[Step]) -> None:
        segments = CUTS[self.cut](steps)
        waits = self.cut != "unawaited"
        while segments:
            segment = segments.pop(0)
            while self.cut == "groups" and self.pipelining_offered and segments and is_open(segment):
                if isinstance(segments[0][0], MailData):
                    break
                segment += segments.pop(0)
            self.send(segment, bool(segments) and not waits)
            self.history[self.answered] = self.verdicts()

    def send(self, segment: list[Piece], followed: bool) -> None:
        """Send a segment, and take note of the replies. `followed`: the next one comes before they leave."""
        body = segment[0] if len(segment) == 1 else None
        if isinstance(body, MailData) and not (self.session.in_body or body.anyway):
            self.answered += 1  # nothing to send
            return
        octets = b"".join(map(octets_of, segment))
        if self.cut == "octets":
            size = 1 if len(octets) < 3000 else 7
            chunks = [octets[at : at + size] for at in range(0, len(octets), size)]
        elif self.cut == "halves" and len(octets) > 2:
            middle = len(octets) // 2
            chunks = [octets[:middle], octets[middle:-1], octets[-1:]]
        else:
            chunks = [octets]
        in_body = self.session.in_body
        self.held_back = False
        out = b"".join(self.hear(chunk, followed) for chunk in chunks)
        replies = replies_in(out)
        self.log.append(Event("send", octets, len(replies)))
        self.note(segment, replies, followed and self.held_back, in_body)

    def hear(self, data: bytes, followed: bool) -> bytes:
        session = self.session
        if session.after_421 is not None:
            session.after_421.feed(data)
        if session.next_action is not NextAction.READ:
            return b""
        out = session.receive(data)
        self.held_back |= session.next_action in (NextAction.SLEEP, NextAction.LOOKUP)
        return out + go_on(session, followed)

    def note(self, segment: list[Piece], replies: list[bytes], followed: bool, in_body: bool) -> None:
        """Take note of the replies, and of what the client should have waited for."""
        last = len(segment) - 1
        for number, piece in enumerate(segment):
            lines = 1
            if isinstance(piece, MailData) and not in_body:
                lines = piece.octets.count(b"\n")  # it is taken for commands
            if len(replies) < lines:
                return
            reply = replies[lines - 1]
            self.codes += [one[:3].decode() for one in replies[:lines]]
            del replies[:lines]
            self.answered += 1
            in_body = reply.startswith(b"354")
            verb = b"" if isinstance(piece, MailData) else verb_of(piece)
            if number < last or followed:
                if verb == b"STARTTLS" and reply[:3] in (b"220", b"554"):
                    self.expected_more.append("talk-behind-starttls")
                elif lines > 1 or reply.startswith(OTHER_PROTOCOL_REPLIES):
                    pass  # a message that is taken for commands, or no SMTP
                elif not self.pipelining_offered:
                    self.expected_more.append("unoffered-pipelining")
                elif must_be_last(piece) and (
                    not self.server.strict or USUAL_LINE.fullmatch(octets_of(piece))
                ):
                    self.expected_more.append("pipelined-behind-last")
            if reply.startswith(b"250") and verb in (b"EHLO", b"HELO"):
                self.pipelining_offered = b"PIPELINING" in reply


def octets_of(piece: Piece) -> bytes:
    """Return what a client sends."""
    return piece.octets if isinstance(piece, MailData) else piece


def must_be_last(piece: Piece) -> bool:
    """Return whether a piece must be the last one of a group."""
    if isinstance(piece, MailData) or len(piece) > MAX_COMMAND_LINE:  # else its verb is not read
        return False
    return isinstance(piece, AuthResponse) or verb_of(piece) in LAST


def is_open(segment: list[Piece]) -> bool:
    """Return whether RFC 2920 lets more follow in a group."""
    return not (isinstance(segment[-1], MailData) or must_be_last(segment[-1]))


def replies_in(out: bytes) -> list[bytes]:
    """Return the replies, each with all of its lines."""
    found: list[bytes] = []
    continued = False
    for line in out.splitlines(keepends=True):
        found = [*found[:-1], found[-1] + line] if continued else [*found, line]
        continued = line[3:4] == b"-"
    return found


# What a run has to find.


def is_playable(case: Case, settings: frozenset[str]) -> bool:
    """Return whether a case has a meaning in some settings."""
    return all(case.legal.get(one, ()) is not None for one in settings)


OCTETS: Final = (frozenset[str](), frozenset(("delay",)), frozenset(("implicit tls",)))
"""The settings in which each octet comes alone: that takes as long as all other cuts together."""


def problems_of(case: Case, settings: frozenset[str]) -> Iterator[str]:
    """Play a case in all cuts; yield what is wrong with the verdicts.

    The table has the verdicts of a client that waits for each reply. All that a cut may change is that
    pieces of a command show no pipelining, and that a group shows it: the model in `Run.note` says where.
    """
    differing = {case.legal[one] for one in settings if one in case.legal}
    wanted = differing.pop() if len(differing) == 1 else None if differing else case.verdicts
    base = Run(case, "halves", settings)
    if wanted is not None:
        seen = [verdict for verdict in wanted if verdict not in PIPELINING]
        yield from difference("halves", base.found, seen)
    for cut in CUTS:
        if (
            cut == "halves"
            or (cut == "unawaited" and settings.isdisjoint(HELD_BACK))
            or (cut == "octets" and settings not in OCTETS)
        ):
            continue
        keys = [cut, *("unseen", *(f"{one} unseen" for one in settings))] if cut in UNSEEN else [cut]
        legal = [case.legal[key] for key in keys if key in case.legal]
        if None in legal:
            continue
        run = Run(case, cut, settings)
        same = base.found if cut == "octets" or run.answered == base.answered else base.history[run.answered]
        more = [] if cut == "octets" else run.expected_more
        yield from difference(cut, run.found, legal[0] if legal else [*same, *more])
        if cut == "alone" and wanted is not None:
            yield from difference(cut, run.found, wanted)


def difference(cut: str, found: Iterable[str], wanted: Iterable[str]) -> Iterator[str]:
    """Yield the difference between verdicts, if there is any."""
    if sorted(found) != sorted(wanted):
        yield f"{cut}: {', '.join(sorted(found)) or 'none'} instead of {', '.join(sorted(wanted)) or 'none'}"


def combinations(most: int) -> list[frozenset[str]]:
    """Return all combinations of up to so many settings, but those that exclude each other."""
    excluding = ({"starttls", "implicit tls"}, {"never matches", "changes nothing", "looked up"})
    return [
        frozenset(chosen)
        for count in range(most + 1)
        for chosen in itertools.combinations(SETTINGS, count)
        if not any(len(one.intersection(chosen)) > 1 for one in excluding)
    ]
