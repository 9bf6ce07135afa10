"""One conversation without a socket: bytes in, replies out, and what to do next.

Strategy. A session eats chunks, not lines: every whole command in a chunk is
answered, a body is passed over by one search for its end, and all replies that
may leave at once leave together (RFC 2920 3.2). What follows is in `next_action`. A
reply with a delay stops the session in the middle of a chunk; `resume` goes on. So
does a memory that has to be waited for; `resume_with_answer` goes on with its answer.
Nothing of a message is kept, and of a command at most LINE octets, of AUTH AUTH_LINE.

There are two roads. `_run` can do everything. `receive` first looks whether the
chunk is one whole command in its commonest form, one whole pipelined group of
such, or one whole body, as nearly every chunk of nearly every sender is: that
takes 0.7 microseconds a command instead of 2.4, 0.2 in a group, and leads through
the same rows and replies.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Final, NamedTuple

from blackhole.rules.attempt_store import PendingAnswer
from blackhole.rules.context import RuleContext
from blackhole.rules.evaluator import NO_ENVIRONMENT, RuleEnvironment, RuleEvaluator, judged
from blackhole.rules.faults import Fault, partial_reply
from blackhole.rules.listener_rules import ListenerRules
from blackhole.rules.model import Rule
from blackhole.smtp import replies
from blackhole.smtp.auth import redacted
from blackhole.smtp.commands import COMMANDS, OTHER, PLAIN, Command, check_helo_name, listener_replies, syntax
from blackhole.smtp.directives import BLANK, FIELD_MARK, MODES, has_no_directives, parse_directives
from blackhole.smtp.error_budget import TARPIT, ErrorBudget, Meter, unmetered, with_limits
from blackhole.smtp.framing import DOTTED, END, SHORT, START, bare, find, skip
from blackhole.smtp.header_section import HeaderCollector, fields
from blackhole.smtp.randomness import RandomSource
from blackhole.smtp.replies import NextAction, Reply
from blackhole.smtp.state import (
    CODE_SPAN,
    GREETED,
    MAIL,
    PHASES,
    RCPT,
    ClientLimits,
    ListenerConfig,
    ListenerReplies,
    SessionState,
    cell,
)
from blackhole.smtp.violations import (
    ALWAYS_INSPECT,
    INSPECT_EVERY,
    INSPECTED_OCTETS,
    WIDEST,
    find_violations,
    is_well_formed,
)

LINE: Final = 2048
"""Octets of a command line. RFC 5321 4.5.3.1.4 asks for 512, extensions for more; Postfix takes 2048 too."""

AUTH_LINE: Final = 12288
"""Octets of AUTH and of the responses behind it (RFC 4954 4), if it is offered."""

PATIENCE: Final = 65536
"""Octets of an over-long line that are passed over in search of its end, before the client is sent away."""

TURN: Final = 128
"""Commands of one client that are answered before others get their turn: under a millisecond of work."""

USUAL: Final = re.compile(rb"(?:MAIL FROM|RCPT TO):<[!-;=?-~]{1,480}>\r\n|(?:HELO|EHLO) [!-~]{1,480}\r\n")
"""Commands with an argument as nearly all senders write them: printable ASCII, not long, no parameters."""

GROUP: Final = re.compile(rb"MAIL FROM:<[!-;=?-~]{1,480}+>\r\n(?:RCPT TO:<[!-;=?-~]{1,480}+>\r\n)++DATA\r\n")
"""A whole transaction as nearly all senders pipeline it. Where nothing is given back, ten recipients take a
fifth less."""

ADDRESSES: Final = re.compile(rb"<([^>]*)>")
"""Those of such a group."""

SAID: Final = {
    "MAIL": slice(len(b"MAIL FROM:<"), -len(b">\r\n")),
    "RCPT": slice(len(b"RCPT TO:<"), -len(b">\r\n")),
    "HELO": slice(len(b"HELO "), -len(b"\r\n")),
    "EHLO": slice(len(b"EHLO "), -len(b"\r\n")),
}
"""Where these commands have the address or the name that they say."""

NOTHING: Final = slice(0)

BARE: Final = len(b"DATA\r\n")
"""Octets of the commonest commands without an argument."""

NEVER: Final = 1 << 62
"""More than any number of messages, or of octets."""

NO_FLAWS: Final[frozenset[str]] = frozenset()

NONE: Final = re.compile(rb"(?!)")

TICK: Final = 0.1
"""Seconds between two pieces of a reply that drips."""

BRIEF: Final = 510
"""Octets of a command line without its end (RFC 5321 4.5.3.1.4)."""

ROOM: Final = 1100
"""More, for what extensions add to MAIL and RCPT: some 600 for RFC 3461, 500 for RFC 4954."""

SLACK: Final = 512
"""Octets that a declared size may be off in any case."""

LACKING: Final = frozenset((replies.UNKNOWN, replies.NOT_OFFERED, replies.BDAT_NOT_OFFERED))
"""Replies to what EHLO did not offer."""

PRIVATE: Final = (b"X", b"x")
"""How verbs begin that client and server may agree on between them (RFC 5321 4.1.5)."""

STAGES: Final = range((GREETED | MAIL | RCPT) + 1)

DOT: Final = ord(".")

READ: Final = NextAction.READ
READ_BODY: Final = NextAction.READ_BODY
ASKED: Final = replies.PENDING
"""An enum's member costs 50 ns to look up, a module's name 5."""

HELLO: Final = b"\x16"
"""The first octet of a TLS ClientHello."""

BINARY: Final = re.compile(rb"[^\t-\r -~]")
"""What begins like this is no text: there may never be a line end behind it."""

STRANGE: Final = re.compile(rb"[^A-Za-z\s]|[^\s:]*:")
"""What begins like this is no command, but a header line or worse: the client speaks another protocol."""


class BoundCommand:
    """A command's row as it is on one listener: whether rules have a say, and where it is counted."""

    __slots__ = (
        "base",
        "do",
        "fits",
        "greets",
        "heeded",
        "judged",
        "last",
        "ordered",
        "phase",
        "quick",
        "read",
        "said",
        "syntax",
    )

    def __init__(
        self, command: Command, strict: bool, policy: ListenerRules, limits: ClientLimits | None = None
    ) -> None:
        self.read: Final = command.read
        self.do: Final = with_limits(command.verb, command.do, limits)
        self.last: Final = command.last
        self.greets: Final = command.verb in ("HELO", "EHLO")
        """Looks at its argument."""
        self.fits: Final = tuple(
            stage & command.needs == command.needs and not stage & command.bars for stage in STAGES
        )
        """By stage: whether it may be said now."""
        self.ordered: Final = strict
        self.phase: Final = command.verb if command.verb in PHASES else "other"
        self.judged: Final = judged(policy, self.phase)
        self.quick: Final = tuple(fits and not self.judged for fits in self.fits)
        """By stage: whether nothing is to be said against it."""
        self.heeded: Final = tuple(fits and self.judged and limits is None for fits in self.fits)
        """By stage: whether nothing is to be said against it if no rule does."""
        self.said: Final = SAID.get(self.phase, NOTHING)
        self.syntax: Final = syntax(command)
        self.base: Final = cell(self.phase, 0)


class SMTPEngine:
    """What all sessions of a listener share: the dispatch table with its rules, and replies made once.

    `random_source` throws for modes, delays and ids: the caller's, so that a seed replays a
    run. `trace` is told each line that comes ("RECV") and goes ("SEND"). `outside`
    answers what rules ask.
    """

    def __init__(
        self,
        config: ListenerConfig,
        random_source: RandomSource,
        trace: TraceFunction | None = None,
        outside: RuleEnvironment = NO_ENVIRONMENT,
    ) -> None:
        self.config: Final = config
        self.host: Final[ListenerReplies] = listener_replies(config)
        self.random_source: Final = random_source
        self.trace: Final = trace
        self.new_id: Final = partial(random_source.getrandbits, 40)
        self.outside: Final = outside
        self.sizes: list[int] = []
        """Octets of the messages that came to their end since the caller last emptied it."""
        self.successor: SMTPEngine | None = None
        """The engine that has taken the place of this one, if one has."""
        self._sessions = 0
        self.policy: Final = ListenerRules(config.rules, config.mode, config.listener)
        self.judged: Final = bool(self.policy.phases)
        self.most: Final = config.message_size_limit or NEVER
        """Octets of a message."""
        self.switch: Final = config.dynamic_switch
        self.modes: Final = {
            mode.decode(): ListenerRules(config.rules, mode.decode(), config.listener)
            for mode in MODES
            if self.switch
        }
        """What messages are judged by that ask for a mode."""
        entries = {row.verb: BoundCommand(row, config.strict, self.policy, config.limits) for row in COMMANDS}
        others = {row.verb: BoundCommand(row, config.strict, self.policy) for row in OTHER}
        self.connect: Final = entries.pop("CONNECT")
        self.end: Final = entries.pop(".")
        self.other: Final = others.pop("other")
        self.auth: Final = entries["AUTH"]
        self.entries: Final = {verb.encode(): entry for verb, entry in (others | entries).items()}
        # The short road of `Session.receive` is closed where a delay, a trace, the order or the line ends
        # want a word.
        self.short: Final = not (config.delay or config.strict or trace or config.bare_newline != "normalize")
        self.greeted: Final = self.connect.base + self.host.greeting.code
        self.lines: Final = {
            verb + b"\r\n": self.entries[verb] for verb in (b"DATA", b"QUIT", b"RSET") if self.short
        }
        self.grouped: Final = tuple(self.entries[verb] for verb in (b"MAIL", b"RCPT", b"DATA"))
        self.group: Final = (GROUP if self.short else NONE).fullmatch
        self.usual: Final = (USUAL if self.short else NONE).fullmatch
        self.initials: Final = {verb[0]: self.entries[verb] for verb in (b"MAIL", b"RCPT", b"HELO", b"EHLO")}
        """By its first octet, the row of a usual command: cutting out the verb takes four times as long."""

    def evaluator(self, client: str, secure: bool) -> RuleEvaluator:
        """Who asks the rules for a session."""
        return RuleEvaluator(
            self.policy, self.outside, self.random_source, RuleContext(self.policy.listener, client, secure)
        )

    def examine(self) -> bool:
        """Whether to look closely at the next session."""
        self._sessions += 1
        return self._sessions <= ALWAYS_INSPECT or not self._sessions % INSPECT_EVERY

    def replace_rules(self, rules: tuple[Rule, ...], outside: RuleEnvironment) -> SMTPEngine:
        """The engine that takes the place of this one, with other rules.

        A session goes over to it with its next command outside a transaction, if it takes the long
        road: the caller makes it `busy`, because the short one does not look for heirs.
        """
        successor = self.successor = SMTPEngine(
            replace(self.config, rules=rules), self.random_source, self.trace, outside
        )
        successor.sizes, successor._sessions = self.sizes, self._sessions
        return successor

    def session(self, secure: bool = False, client: str = "", meter: Meter = unmetered) -> Session:
        """A conversation with the client at this address; `secure` where TLS was there before SMTP."""
        return Session(self, secure, client, meter)


class DeferredReply(NamedTuple):
    """A reply that is held back."""

    entry: BoundCommand
    answer: Reply
    fault: Fault | None
    wire: bytes | None = None
    """What is left of one that drips."""


ParsedCommand = tuple[int, BoundCommand, Reply]
"""Where the next command begins, the row of this one, and the answer."""


class Session(SessionState):
    """A State that listens.

    After `greet`, `receive`, `resume` and `resume_with_answer` look at `next_action`. What is to be
    counted is in `single_event` and `counted_events`; the caller empties them.
    """

    __slots__ = (
        "_again",
        "_asked",
        "_bare",
        "_denied",
        "_excess",
        "_flaws",
        "_guarded",
        "_header",
        "_late",
        "_next_look",
        "_rest",
        "_run_of_line",
        "_strange",
        "_tail",
        "_wish",
        "busy",
        "client",
        "engine",
        "error_budget",
        "evaluator",
        "messages",
        "next_action",
        "pipelines",
        "single_event",
        "wait",
    )

    def __init__(self, engine: SMTPEngine, secure: bool, client: str, meter: Meter) -> None:
        SessionState.__init__(self, engine.host, engine.new_id, secure)  # super() takes twice as long
        self.engine = engine
        self.client = client
        limits = engine.config.limits
        self.error_budget = None if limits is None else ErrorBudget(limits, meter)
        self.next_action = NextAction.READ
        self.wait = 0.0
        """Seconds, with Then.WAIT; 0 means only that it is others' turn."""
        self.single_event = 0
        """Where the only reply is counted that was given, if it came by the short road."""
        self.messages = 0
        """That have come to their end."""
        self.pipelines = False
        """The client has sent a command before the reply to another."""
        self.busy = False
        """Something came and was not answered, or replies are held back: the short road is closed."""
        self._bare = False
        """The body has lines that end with LF alone. Not looked at on the short road."""
        self._late: DeferredReply | None = None
        """The reply that a delay holds back."""
        self._asked: BoundCommand
        """The row of the command that the memory is asked about."""
        self._rest = b""
        """What came and was not answered yet: half a line, or all that is behind a delay."""
        self._tail = b""
        """The last octets of the body that is being passed over; empty when there is none."""
        self._excess = 0
        """Octets passed over of a line that is too long."""
        self.evaluator = engine.evaluator(client, secure) if engine.judged else None
        """Asks the rules, where there are any."""
        self._header: HeaderCollector | None = None
        """The header section of the message under way, if it may ask for something."""
        self._wish: tuple[float, float] | None = None
        """Seconds that a message wants its reply to be held back."""
        self._guarded = False
        """What comes now may be a secret."""
        self._again = False
        """STARTTLS has made all void that was said before."""
        self._strange = False
        """The client began without a greeting, and was accused of it."""
        self._denied = False
        """The last MAIL, or a RCPT since then, was refused."""
        self._flaws: frozenset[str] = NO_FLAWS
        """What was found to be wrong with the body."""
        self._run_of_line = 0
        """Octets of the body's line that goes on."""
        self.sampled = engine.examine()
        self._next_look = 0 if self.sampled else NEVER
        """How many messages go before the next one that is looked at."""

    @property
    def in_body(self) -> bool:
        """Whether a message is under way."""
        return bool(self._tail)

    def greet(self) -> bytes:
        """The reply to CONNECT. The listener's delay is none of its business: 1.x delayed commands."""
        if self.engine.successor is not None:
            self._switch_to_successor()
        entry = self.engine.connect
        if self.engine.short and not entry.judged:
            self.single_event = self.engine.greeted
            return self.host.greeting.wire
        return self._greet(entry, self._answer(entry, b""))

    def _greet(self, entry: BoundCommand, answer: Reply) -> bytes:
        if answer is ASKED:
            self._asked, self.next_action = entry, NextAction.LOOKUP
            return b""
        seconds, fault = self._effects()
        if seconds is None:
            out: list[bytes] = []
            self._say(out, entry, answer, fault)
            self.busy = self._late is not None
            return b"".join(out)
        self._late = DeferredReply(entry, answer, fault)
        self._hold(seconds)
        self.busy = True
        return b""

    def apply_limits(self, engine: SMTPEngine, limits: ClientLimits, meter: Meter) -> None:
        """Be of this engine from now on, which is as ours was but that it has an eye on limits."""
        self.engine = engine
        self.error_budget = ErrorBudget(limits, meter)

    def check_implicit_tls(self) -> None:
        """TLS comes before the greeting, and rules have a say in that too."""
        if self.evaluator is not None:
            self.next_action = self.evaluator.approach(self)

    def receive(self, data: bytes) -> bytes:
        """Take what the client sent; give the replies that may leave now."""
        if self.busy:
            return self._run(self._rest + data)
        engine = self.engine
        if self._tail:
            # A whole body: it has just begun, its end is the end of the chunk, and no end is before that.
            size = len(data) - 3
            if self._tail is not START or data[0] == DOT or not data.endswith(END) or not engine.short:
                return self._run(data)
            # Of a short one: any dot that begins a line takes the long road, to see whether it is stuffed.
            if (data.find(DOTTED) if size < SHORT else find(data, 0)) != size - 2:
                return self._run(data)
            if engine.switch:
                head = data if size < SHORT else data[: data.find(BLANK)]
                # `in` takes half as long again as `find`: it asks first whether it was given a number.
                if head.find(FIELD_MARK) >= 0:
                    return self._run(data)
            if self.messages >= self._next_look:
                if size > WIDEST or not is_well_formed(data, self.eightbit):
                    return self._run(data)
                self._looked()
            entry = engine.end
            if entry.judged and not self._ends(data, size):
                return self._run(data)
            self._tail = b""
            self.octets = size
            answer = entry.do(self, PLAIN)
            wire = self._finish(answer)
        else:
            known = engine.lines.get(data) if len(data) == BARE else None
            if known is None:
                if engine.usual(data) is None:
                    return self._run(data) if engine.group(data) is None else self._group(data)
                known = engine.initials[data[0]]
            if not known.quick[self.stage] and not self._passes(known, data):
                return self._run(data)
            if known.greets and self.sampled:
                check_helo_name(self, data[len(b"EHLO ") : -2])
            entry = known
            answer = entry.do(self, PLAIN)
            wire = answer.wire
            if answer.next_action is not READ:
                if answer.next_action is READ_BODY:
                    self._tail = START
                else:
                    self.next_action = answer.next_action
        self.single_event = entry.base + answer.code
        return wire

    def _passes(self, entry: BoundCommand, data: bytes) -> bool:
        """Whether the rules that have a say in a command in its commonest form have nothing to say."""
        if not entry.heeded[self.stage]:
            return False
        evaluator = self.evaluator
        assert evaluator is not None
        phase, said = entry.phase, data[entry.said]
        if not evaluator.passes(phase, said, self.stage <= GREETED):
            return False
        if evaluator.retry_tracker is not None:
            evaluator.retry_tracker.command_answered(self, phase, said, 250)
        if phase == "MAIL":
            self._denied = False
        return True

    def _all_pass(self, group: bytes) -> bool:
        """The same for a whole pipelined group."""
        if self.error_budget is not None:
            return False
        assert self.evaluator is not None
        sender, *recipients = ADDRESSES.findall(group)
        said = ("MAIL", sender), *(("RCPT", recipient) for recipient in recipients), ("DATA", b"")
        if not self.evaluator.all_pass(self, said):
            return False
        self._denied = False
        return True

    def _ends(self, data: bytes, size: int) -> bool:
        """The same for a whole body."""
        evaluator = self.evaluator
        assert evaluator is not None
        if size > self.engine.most or not evaluator.ends(self, data, size):
            return False
        if evaluator.retry_tracker is not None:
            evaluator.retry_tracker.message_accepted(self, data)
        return True

    def _group(self, data: bytes) -> bytes:
        """Answer MAIL, RCPT, ..., DATA that came in one chunk, if no rule has a word in it."""
        if self.stage != GREETED or not self.esmtp:
            return self._run(data)
        recipients = data.count(b"\n") - 2
        self.single_event = 0
        if self.error_budget is not None and not self.error_budget.allows(recipients, self.messages):
            return self._run(data)
        if self.engine.grouped[0].judged and not self._all_pass(data):
            return self._run(data)
        mail, rcpt, last = self.engine.grouped
        sender, recipient, start = mail.do(self, PLAIN), rcpt.do(self, PLAIN), last.do(self, PLAIN)
        taken = [rcpt.base + recipient.code] * recipients
        self.counted_events += (mail.base + sender.code, *taken, last.base + start.code)
        self.recipients = recipients
        self._tail = START
        return sender.wire + recipient.wire * recipients + start.wire

    def resume(self) -> bytes:
        """Go on after Then.WAIT."""
        return self._run(self._rest)

    @property
    def pending_lookup(self) -> PendingAnswer:
        """The answer to wait for, with Then.ASK."""
        assert self.evaluator is not None
        return self.evaluator.later

    def resume_with_answer(self, known: object) -> bytes:
        """Go on after Then.ASK with the answer; None: there is none."""
        assert self.evaluator is not None
        offered = self.esmtp
        answer = self.evaluator.learn(known)
        if isinstance(answer, NextAction):
            self.next_action = answer
            return b""
        if answer is ASKED:
            return b""
        self.next_action = NextAction.READ
        entry = self._asked
        if entry is self.engine.connect:
            return self._greet(entry, answer)
        if entry is not self.engine.end:
            answer = self._weighed(entry, answer, offered, bool(self._rest))
        return self._run(self._rest, (0, entry, answer))

    def client_spoke_first(self, greeting: bytes) -> bytes:
        """The client talked before it was greeted; what to say, which was to be this greeting."""
        if self.engine.config.strict and self.next_action is READ and greeting.startswith(b"220"):
            greeting = self.interrupt(replies.IMPROPER_PIPELINING)
        self.record_violation("early-talk")
        return greeting

    def interrupt(self, answer: Reply) -> bytes:
        """Say this in place of what was said last, and no more."""
        self.counted_events[-1] += answer.code - self.counted_events[-1] % CODE_SPAN - 200
        self.next_action = NextAction.CLOSE
        return answer.wire

    def secured(self) -> None:
        """TLS is on: forget all that was said before (RFC 3207 4.2)."""
        self.reset()
        self.stage = 0
        self.authenticated = False
        self.secure = True
        self.esmtp = self._strange = False
        self._again = self.next_action is NextAction.START_TLS
        self.next_action = NextAction.READ
        if self.evaluator is not None:
            self.evaluator = self.evaluator.secured()

    def _run(self, data: bytes, step: ParsedCommand | None = None) -> bytes:
        """The long road: any number of commands and bodies, in any state; `step` is over with."""
        delay = self.engine.config.delay
        error_budget = self.error_budget
        out: list[bytes] = []
        position = 0
        left = TURN
        late = self._late
        self._late = None
        self._rest = b""
        self.single_event = 0
        self.next_action = NextAction.READ
        while True:
            if late is not None:
                entry, answer, fault, wire = late
                late = None
                if wire is not None:
                    if self._drip(out, entry, answer, fault, wire):
                        self._keep(data)
                        break
                    continue
            elif position == len(data) and step is None:
                break
            elif not left:
                self._rest = data[position:]
                self.next_action = NextAction.SLEEP
                self.wait = 0.0
                break
            else:
                left -= 1
                if step is None:
                    if self.engine.successor is not None:
                        self._switch_to_successor()
                    step = self._body(data, position) if self._tail else self._line(data, position)
                    if step is None:
                        break
                position, entry, answer = step
                step = None
                if answer is ASKED:
                    self._asked, self._rest, self.next_action = entry, data[position:], NextAction.LOOKUP
                    break
                seconds, fault = self._effects()
                span, self._wish = self._wish or delay, None
                if seconds is None and span is not None:
                    seconds = self.engine.random_source.uniform(*span)
                if error_budget is not None:
                    ours = entry.judged or entry is self.engine.end
                    if answer.code >= 500 and not ours:
                        answer = error_budget.error(self, answer)
                    if error_budget.slow:
                        seconds = (seconds or 0.0) + TARPIT
                if seconds is not None:
                    self._late = DeferredReply(entry, answer, fault)
                    self._rest = data[position:]
                    self._witness(entry)
                    self._hold(seconds)
                    break
            if self._say(out, entry, answer, fault):
                self._keep(data[position:])
                break
        self.busy = bool(self._rest or self._excess or self._late or self.exchange) or (
            (error_budget is not None and error_budget.slow) or self.engine.successor is not None
        )
        return out[0] if len(out) == 1 else b"".join(out)

    def _switch_to_successor(self) -> None:
        """Obey the engine that has taken the place of ours; but what has begun ends under the same rules."""
        evaluator = self.evaluator
        begun = self.stage > GREETED or self._tail or self.exchange is not None
        if begun or (evaluator is not None and evaluator.rejected_at_connect):
            return
        while self.engine.successor is not None:
            self.engine = self.engine.successor
        self.evaluator = self.engine.evaluator(self.client, self.secure) if self.engine.judged else None
        if evaluator is not None:
            evaluator.hand_over(self.evaluator)

    def _body(self, data: bytes, start: int) -> ParsedCommand | None:
        """Pass over a body from `start`: where it ends, and the answer to it; or None, it goes on."""
        engine, tail = self.engine, self._tail
        if tail is START and self.evaluator is not None:
            self.evaluator.collect()
        position, self._tail = skip(data, start, tail)
        end = position if position >= 0 else len(data)
        if engine.trace is not None:
            for line in data[start:end].splitlines():
                engine.trace(self, "RECV", line)
        if self.evaluator is not None and self.evaluator.header is not None:
            self.evaluator.header.feed(data[start:end])
        if self.octets < INSPECTED_OCTETS and self.messages >= self._next_look:
            stop = position - len(b".\r\n") if position >= 0 else len(data)
            self._look(data[start : max(start, min(stop, start + INSPECTED_OCTETS - self.octets))], tail)
        if engine.switch:
            if tail is START:
                self._header = None if has_no_directives(data, start) else HeaderCollector()
            if self._header is not None:
                self._header.feed(data[start:end])
        if engine.config.bare_newline != "normalize" and bare(data, start, end, tail):
            self._bare = True
        self.octets += end - start
        size = self.octets - len(b".\r\n")
        limit = engine.config.message_size_limit
        if 0 < 2 * limit < size:
            # It could go on for ever; all that is left to say can be said now.
            if self.esmtp:
                self.record_violation("size-over-limit")
            self._tail = b""
            return end, engine.end, replies.FAR_TOO_LARGE
        if position < 0:
            return None
        self.octets = size
        self._looked()
        if position < len(data) and not self.esmtp:
            self.record_violation("unoffered-pipelining")
        if self._bare and (refusal := self._newline()) is not None:
            return position, engine.end, refusal
        return position, engine.end, self._end_of_message()

    def _end_of_message(self) -> Reply:
        """Answer a message as it asks for itself, or as all others."""
        engine, header = self.engine, self._header
        if header is None:
            return self._answer(engine.end, b"")
        self._header = None
        mode, self._wish = parse_directives(fields(header.text))
        if not mode:
            return self._answer(engine.end, b"")
        evaluator = self.evaluator or engine.evaluator("", self.secure)
        return evaluator.answer(self, ".", engine.end.do, PLAIN, engine.modes[mode])

    def _looked(self) -> None:
        """A message is over: see when to look again."""
        if self.messages >= self._next_look and self.messages >= ALWAYS_INSPECT - 1:
            self._next_look = self.messages + INSPECT_EVERY

    def _look(self, piece: bytes, before: bytes) -> None:
        """See what is wrong with the next piece of a body."""
        if before is START:
            self._flaws = NO_FLAWS
            self._run_of_line = 0
        found = self._flaws.union(find_violations(piece, before, self._run_of_line, self.eightbit))
        for rule in sorted(found - self._flaws):
            # Where all of each message is searched for bare LF, it is told of in another place.
            if rule != "bare-lf" or self.engine.config.bare_newline == "normalize":
                self.record_violation(rule)
        self._flaws = found
        end = piece.rfind(b"\n")
        self._run_of_line = len(piece) - 1 - end + (self._run_of_line if end < 0 else 0)

    def _line(self, data: bytes, start: int) -> ParsedCommand | None:
        """Answer the command at `start`: where the next begins, and the answer; or None, for half a line."""
        engine = self.engine
        end = data.find(b"\n", start)
        line = data[start : end if end >= 0 else len(data)]
        if self._excess or (len(line) > LINE and len(line) > self._most(line) and not BINARY.match(line)):
            self._excess += len(line)
            if self._excess > PATIENCE:
                self.record_violation("long-command")
                return len(data), engine.other, replies.FAR_TOO_LONG
            if end < 0:
                return None
            self._excess = 0
            self.record_violation("long-command")
            if self.exchange is not None:
                self.exchange = None
                return end + 1, engine.auth, replies.RESPONSE_TOO_LONG
            return end + 1, engine.other, replies.TOO_LONG
        if end < 0 and not BINARY.match(line):
            self._rest = line
            return None
        if line.endswith(b"\r"):
            line = line[:-1]
        elif end >= 0 and not BINARY.match(line):
            refusal = self._newline()
            if refusal is not None:
                return end + 1, engine.other, refusal
        if self.exchange is not None and not BINARY.match(line):
            entry, argument = engine.auth, line
        else:
            verb, _, argument = line.partition(b" ")
            entry = engine.entries.get(verb) or engine.entries.get(verb.upper()) or engine.other
        if engine.trace is not None:
            engine.trace(self, "RECV", self._shown(entry, line))
        if len(line) > BRIEF + (ROOM if b"> " in line else 0) and entry is not engine.auth:
            self.record_violation("long-command")
        offered = self.esmtp
        if entry is engine.other and STRANGE.match(line):
            answer = replies.TLS_ON_PLAIN_PORT if line.startswith(HELLO) else replies.NOT_SMTP
        elif (odd := self._odd(line)) is not None:
            self.exchange = None
            answer = odd
        else:
            answer = self._answer(entry, argument)
        if answer in LACKING and not entry.judged and not line.startswith(PRIVATE):
            self.record_violation("unknown-command")
        if answer is not ASKED:
            answer = self._weighed(entry, answer, offered, 0 <= end < len(data) - 1)
        return end + 1 or len(data), entry, answer

    def _weighed(self, entry: BoundCommand, answer: Reply, offered: bool, followed: bool) -> Reply:
        """See what a client did wrong whose command is answered so; what to answer to one in a hurry."""
        if entry.phase == "MAIL" or (entry.phase == "RCPT" and answer.code >= 400):
            self._denied = answer.code >= 400
        if followed:
            self._overtake(entry, answer, offered)
            if answer.next_action is not READ:
                patient = answer
                answer = self._hasty(answer)
                if answer is not patient and self.evaluator is not None:
                    self.evaluator.fault = None
        return answer

    def _overtake(self, entry: BoundCommand, answer: Reply, offered: bool) -> None:
        """Something came before the answer to a command."""
        self.pipelines = True
        if answer.next_action is NextAction.START_TLS:
            self.record_violation("talk-behind-starttls")
        elif not offered:
            self.record_violation("unoffered-pipelining")
        elif entry.last:
            self.record_violation("pipelined-behind-last")

    def _misplaced(self, entry: BoundCommand) -> None:
        """A command came when it should not."""
        if not (self.stage & GREETED or self._strange):
            self._strange = True
            self.record_violation("no-hello-after-starttls" if self._again else "no-hello")
        if self.pipelines and self._denied:
            return  # sent before its MAIL or RCPT was refused: RFC 2920 3.1 has the server deal with that
        if entry.phase == "DATA":
            self.record_violation("no-recipient" if self._denied else "wrong-order")
        elif entry.phase == "RCPT" or self.stage & MAIL:
            self.record_violation("wrong-order")

    def _answer(self, entry: BoundCommand, argument: bytes) -> Reply:
        """Check the order, read the argument, ask the rules, do it: always in this order."""
        if self.evaluator is not None and self.evaluator.rejected_at_connect and entry.phase != "QUIT":
            # RFC 5321 3.1: wait for QUIT, answer 503 to anything else.
            self.record_violation("talk-after-521")
            return replies.BAD_SEQUENCE
        if not entry.fits[self.stage]:
            self._misplaced(entry)
            if entry.ordered:
                return replies.BAD_SEQUENCE
        parsed = entry.read(self, argument)
        if parsed is None:
            self.record_violation("syntax")
            return entry.syntax
        if isinstance(parsed, Reply):
            return parsed
        if entry.judged:
            assert self.evaluator is not None
            return self.evaluator.answer(self, entry.phase, entry.do, parsed)
        return entry.do(self, parsed)

    def _effects(self) -> tuple[float | None, Fault | None]:
        """What a rule wants done to the reply: seconds to hold it back, and a fault."""
        evaluator = self.evaluator
        if evaluator is None:
            return None, None
        effects = evaluator.delay, evaluator.fault
        evaluator.delay = evaluator.fault = None
        return effects

    def _hold(self, seconds: float) -> None:
        """Hold back what was to be said."""
        self.next_action = NextAction.SLEEP
        self.wait = seconds

    def _say(self, out: list[bytes], entry: BoundCommand, answer: Reply, fault: Fault | None) -> bool:
        """Put the reply where it will leave from; true when nothing may follow it now."""
        wire = self._finish(answer) if entry is self.engine.end else answer.wire
        if fault is not None:
            if fault.rate:
                return self._drip(out, entry, answer, fault, wire)
            if fault.share < 1:
                out.append(partial_reply(wire, fault.share))
                self._witness(entry, answer, fault)
                return self._end(fault.next_action)
            self._said(out, entry, answer, wire, fault)
            return self._end(fault.next_action)
        return self._said(out, entry, answer, wire)

    def _drip(
        self, out: list[bytes], entry: BoundCommand, answer: Reply, fault: Fault | None, wire: bytes
    ) -> bool:
        """Let the next drop of a reply leave; true while there is more of it."""
        assert fault is not None
        size = ceil(fault.rate * TICK)
        if len(wire) <= size:
            return self._said(out, entry, answer, wire)
        out.append(wire[:size])
        self._late = DeferredReply(entry, answer, fault, wire[size:])
        self._witness(entry)
        self._hold(size / fault.rate)
        return True

    def _keep(self, rest: bytes) -> None:
        """What came behind a reply that is still under way has to wait; behind the last one it is nothing."""
        if self._late is not None:
            self._rest = rest

    def _end(self, next_action: NextAction) -> bool:
        """Say nothing more."""
        self.next_action = next_action
        self._rest = b""
        return True

    def _witness(self, entry: BoundCommand, answer: Reply | None = None, fault: Fault | None = None) -> None:
        """Have it witnessed what became of a message; without an answer, that this has to wait."""
        if entry is not self.engine.end or self.evaluator is None or self.evaluator.retry_tracker is None:
            return
        if answer is None:
            self.evaluator.retry_tracker.reply_deferred(self, bool(self._rest))
        else:
            self.evaluator.retry_tracker.reply_sent(self, answer.code, fault)

    def _said(
        self, out: list[bytes], entry: BoundCommand, answer: Reply, wire: bytes, fault: Fault | None = None
    ) -> bool:
        """All of a reply leaves; true when nothing may follow it."""
        out.append(wire)
        self._witness(entry, answer, fault)
        self.counted_events.append(entry.base + answer.code)
        if self.engine.trace is not None:
            for line in wire.splitlines():
                self.engine.trace(self, "SEND", line)
        if answer.next_action is READ:
            return False
        if answer.next_action is READ_BODY:
            self._tail = START
            self._bare = False
            self.octets = 0
            return False
        return self._end(answer.next_action)

    def _finish(self, answer: Reply) -> bytes:
        """The message is over, taken or not; what to say."""
        self.messages += 1
        self.engine.sizes.append(self.octets)
        if self.size:
            self._compare()
        if answer is replies.QUEUED:
            wire = answer.wire % (self._id or self.new_id())
        else:
            wire = answer.wire
            if answer.next_action is NextAction.CLOSE:
                self.next_action = NextAction.CLOSE
        self.reset()
        return wire

    def _shown(self, entry: BoundCommand, line: bytes) -> bytes:
        """A command as a trace may have it."""
        engine = self.engine
        if self.exchange is not None or (self._guarded and entry is engine.other):
            return b"..."  # the second: a response sent before the client could know that AUTH was refused
        self._guarded = entry is engine.auth
        return redacted(line) if self._guarded else line

    def _most(self, line: bytes) -> int:
        """How many octets this line may have, which has more than most may."""
        long = self.exchange is not None or line[:5].upper() == b"AUTH "
        return AUTH_LINE if long and self.engine.config.auth else LINE

    def _compare(self) -> None:
        """See whether what came is what MAIL declared."""
        # Doubled dots are not declared (RFC 1870 5), and make four octets of a line that is just a dot.
        missing = self.octets - self.size
        if missing > max(self.size // 3, SLACK) or -missing > max(self.size // 10, SLACK):
            self.record_violation("size-wrong")

    def _odd(self, line: bytes) -> Reply | None:
        """The reply to a line that is no text, whatever its verb."""
        if b"\0" in line or b"\r" in line:
            self.record_violation("nul" if b"\0" in line else "bare-cr")
            return replies.CONTROL_CHARACTER
        if not line.isascii():
            try:
                line.decode()
            except UnicodeDecodeError:
                self.record_violation("utf8-undeclared")
                return replies.NOT_TEXT
        return None

    def _newline(self) -> Reply | None:
        """A command or a message had a line that ends with LF alone: count it, or refuse it."""
        self.record_violation("bare-lf")
        return replies.BARE_NEWLINE if self.engine.config.bare_newline == "reject" else None

    def _hasty(self, answer: Reply) -> Reply:
        """The reply to a command that something follows which had to wait for the reply."""
        if answer.next_action is NextAction.START_TLS:
            # Commands that a stranger put in front of the handshake would be run as if they had
            # come under TLS (CVE-2011-0411).
            return replies.IMPROPER_PIPELINING
        if answer.next_action is NextAction.READ_BODY and self.engine.config.strict:
            return replies.IMPROPER_PIPELINING
        return answer


TraceFunction = Callable[[Session, str, bytes], None]
"""Told the session, "RECV" or "SEND", and a line without its end."""
