"""A judge: asks the rules on behalf of one session, and tells it what they say.

There is one where there are rules, and none where there are none. It knows the rules that its
client can meet, keeps what they look at from one command to the next, and leaves what they want
done to the reply where the session finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from blackhole.rules.limiters import OBLIVION, Later, Memory, counted
from blackhole.rules.model import Case, Doubt, Fault, Policy, Ruling, Table, masked
from blackhole.rules.retries import Past, Witness
from blackhole.smtp import replies
from blackhole.smtp.header_section import MOST, Header, fields
from blackhole.smtp.randomness import Dice
from blackhole.smtp.replies import Reply, Then
from blackhole.smtp.state import GREETED, State

TOLD: Final = frozenset(("HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET"))
"""Phases that change what is known of a case, or hang on what was refused before."""


class Outside(NamedTuple):
    """What rules want to know of the world, which the engine knows nothing of."""

    clock: Callable[[], float] = lambda: 0.0
    """Seconds since the server started."""
    memory: Memory = OBLIVION
    """What was tried before."""
    past: Past | None = None
    """What became of messages; None: nobody wants to know."""
    steady: Callable[[], float] = lambda: 0.0
    """Seconds of a clock that nothing sets back, for what is past."""


NOWHERE: Final = Outside()


def judged(policy: Policy, phase: str) -> bool:
    """Whether a judge has to hear of the commands of this phase."""
    return (
        phase in policy.phases
        # A refusal in place of the greeting has a word in all that follows.
        or "CONNECT" in policy.phases
        or ((policy.remembers or policy.watches) and phase in TOLD)
        or (policy.watches and phase in (".", "QUIT"))
    )


class Judge:
    """One session's.

    After `answer` the session takes `delay` and `fault`, and the connection `certificate`. Where the
    memory answers later, `learn` goes on.
    """

    __slots__ = (
        "_dice",
        "_open",
        "_outside",
        "_policy",
        "_tables",
        "barred",
        "case",
        "certificate",
        "delay",
        "fault",
        "header",
        "witness",
    )

    def __init__(self, policy: Policy, outside: Outside, dice: Dice, case: Case) -> None:
        self._policy = policy
        self._outside = outside
        self._dice = dice
        self.case = case
        self._tables = policy.tables(case)
        self.delay: float | None = None
        """Seconds that the reply is to be held back."""
        self.fault: Fault | None = None
        """What is to be done to the reply."""
        self.certificate = ""
        """What is to be shown in the handshake in place of ours: a key of CERTIFICATES."""
        self.header: Header | None = None
        """The header section of the message under way, if a rule wants to know it."""
        self._open: tuple[Doubt, Callable[[Ruling | Doubt | None], Reply | Then]]
        """What has to be known before there is an answer, and what is done then."""
        self.witness: Witness | None = None
        """Who sees whether mail comes again, if rules may refuse some."""
        if policy.watches and outside.past is not None:
            self.witness = Witness(outside.past, outside.steady, case.client)
        self.barred = False
        """Refused in place of the greeting: nothing but QUIT is served."""

    def secured(self) -> Judge:
        """The judge under TLS: other rules, and nothing remembered of what was said."""
        judge = Judge(self._policy, self._outside, self._dice, self.case.secured())
        judge.witness = self.witness
        return judge

    def leave(self) -> None:
        """The connection is no more."""
        for place in self.case.entered:
            self._outside.memory.leave(place)

    def hand_over(self, heir: Judge | None) -> None:
        """Leave the session to a judge who knows other rules, or to none.

        He hears what the client has said; and what it has used up, where he has the same memory.
        """
        if heir is not None:
            heir.case.helo, heir.case.refused = self.case.helo, self.case.refused
            heir.witness = heir.witness and self.witness
            if heir._outside.memory == self._outside.memory:
                heir.case.spent, heir.case.entered = self.case.spent, self.case.entered
                return
        self.leave()

    def collect(self) -> None:
        """A message begins."""
        if self._policy.reads_header or self.witness is not None:
            self.header = Header()

    def approach(self, state: State) -> Then:
        """TLS comes before the greeting: rules for STARTTLS say with which certificate, and what fault."""
        return self._approach(state, self._ask("STARTTLS"))

    def _approach(self, state: State, ruling: Ruling | Doubt | None) -> Then:
        if ruling is None:
            return Then.LISTEN
        if isinstance(ruling, Doubt):
            self._open = ruling, partial(self._approach, state)
            return Then.ASK
        state.heed(ruling.cell)
        self.certificate = ruling.verdict.certificate
        return Then.LISTEN if ruling.verdict.fault is None else ruling.verdict.fault.then

    @property
    def later(self) -> Later:
        """The answer that is waited for."""
        return self._open[0].later

    def learn(self, known: Any) -> Reply | Then:
        """Go on where it was asked, by `answer` or `approach`, with the answer; None: there is none."""
        doubt, go_on = self._open
        del self._open  # which knows the session, as that knows us
        return go_on(doubt.learn(known))

    def passes(self, phase: str, said: bytes, anew: bool) -> bool:
        """Whether no rule has a word in a command of this phase with this address or name and no parameters;
        then it is kept in mind, else nothing has happened. `anew`: there is no transaction.

        With a rule that none of it is for, a message takes 53,000 instructions so; by way of `answer` it
        took 144,000.
        """
        case = self.case
        if case.refused or self.barred:
            return False
        if anew:
            self._begin()
        table = self._tables.get(phase)
        if table is None:
            case.tell(phase, said)
            return True
        before = case.sender, case.recipient
        case.tell(phase, said)
        if self._silent(table):
            return True
        case.sender, case.recipient = before
        return False

    def all_pass(self, state: State, commands: Sequence[tuple[str, bytes]]) -> bool:
        """The same for a whole transaction, which is done at once or not at all; it is witnessed too."""
        for number, (phase, said) in enumerate(commands):
            if not self.passes(phase, said, not number):
                self._begin()
                return False
        if self.witness is not None:
            for phase, said in commands:
                self.witness.hear(state, phase, said, 250)
        return True

    def ends(self, state: State, message: bytes, octets: int) -> bool:
        """Whether no rule has a word in the end of this message of so many octets."""
        table = self._tables.get(".")
        if table is None:
            return True
        if state.stage <= GREETED:
            self._begin()
        case = self.case
        case.tell(".", size=octets)
        if self._policy.reads_header:
            case.header = fields(message[:MOST])
        silent = self._silent(table)
        case.header = ()
        return silent

    def _begin(self) -> None:
        """Forget the envelope that was, where there is no transaction."""
        case = self.case
        case.sender = case.recipient = b""
        case.size = 0

    def _silent(self, table: Table) -> bool:
        """Whether no rule can have a word in the case as it is. To ask changes nothing."""
        if table.timed:
            self.case.at = self._outside.clock()
        return table.silent(self.case)

    def answer(
        self,
        state: State,
        phase: str,
        do: Callable[[State, Any], Reply],
        said: Any,
        policy: Policy | None = None,
    ) -> Reply:
        """Ask the rules of the phase; do what they say, or what the client asked for.

        `policy` is asked in place of the listener's, this once.
        """
        case = self.case
        if state.stage <= GREETED:
            self._begin()
        if case.refused and not state.recipients:
            # As with every server that refuses: no recipient without a sender, and no message without one.
            if case.refused == "MAIL" and phase in ("RCPT", "DATA"):
                return self._told(state, phase, said, replies.BAD_SEQUENCE)
            if phase == "DATA":
                return replies.NO_RECIPIENT
        before = case.sender, case.recipient
        address, size = b"", state.octets
        if phase in ("MAIL", "RCPT"):
            address, size = said.address, int(said.parameters.get(b"SIZE", b"0"))
        elif phase in ("HELO", "EHLO"):
            address = said
        case.tell(phase, address, size)
        if phase == "." and self.header is not None:
            text, self.header = self.header.text, None
            if self._policy.reads_header:
                case.header = fields(text)
            if self.witness is not None:
                self.witness.end(text)
        return self._conclude(state, phase, do, said, before, self._ask(phase, policy))

    def _conclude(
        self,
        state: State,
        phase: str,
        do: Callable[[State, Any], Reply],
        said: Any,
        before: tuple[bytes, bytes],
        ruling: Ruling | Doubt | None,
    ) -> Reply:
        """Do what the rules say, once they have come to an end. `before` was known before this command."""
        if isinstance(ruling, Doubt):
            self._open = ruling, partial(self._conclude, state, phase, do, said, before)
            return replies.ASKED
        case = self.case
        case.header = ()
        answer = do(state, said) if ruling is None else self._obey(state, do, said, ruling)
        if answer.code >= 400:
            if phase in ("MAIL", "RCPT"):
                case.sender, case.recipient = before
                case.refused = phase
            self.barred |= phase == "CONNECT"
        return self._told(state, phase, said, answer)

    def _told(self, state: State, phase: str, said: Any, answer: Reply) -> Reply:
        """Have it witnessed what was answered."""
        if self.witness is not None:
            address = said.address if phase in ("MAIL", "RCPT") else b""
            self.witness.hear(state, phase, address, answer.code)
        return answer

    def _ask(self, phase: str, policy: Policy | None = None) -> Ruling | Doubt | None:
        """What the rules of a phase say, once all is known that they look at."""
        tables = self._tables if policy is None else policy.tables(self.case)
        table = tables.get(phase)
        if table is None:
            return None
        case = self.case
        case.phase = phase
        outside = self._outside
        if table.timed:
            case.at = outside.clock()
        if table.counted(case):
            count = outside.memory.revise(case.key, case.at, counted)
            if isinstance(count, Later):
                return Doubt(count, partial(self._count, table))
            if count is None:
                return self._count(table, None)
            case.attempt = count
        return table.find(case, self._dice, outside.memory)

    def _count(self, table: Table, count: int | None) -> Ruling | Doubt | None:
        """It is known now how many times this was tried, or that nobody knows: then it is the first."""
        self.case.attempt = count or 1
        if count is None:
            table = table.blind
        return table.find(self.case, self._dice, self._outside.memory)

    def _obey(self, state: State, do: Callable[[State, Any], Reply], said: Any, ruling: Ruling) -> Reply:
        """Do what was asked, unless it is refused or a fault comes in its place."""
        verdict, lots, cell = ruling
        state.heed(cell)
        self.fault = verdict.fault
        self.certificate = verdict.certificate
        if verdict.delay is not None:
            self.delay = verdict.delay.draw(lots[2], lots[3])
        self.case.id = state.id
        own = verdict.pick(lots[1], self.case)
        if verdict.instead or (own is not None and own.code >= 400):
            return own or replies.UNSAID
        done = do(state, said)
        if own is None:
            return masked(done, verdict) if verdict.hide or verdict.add else done
        if done.code >= 400 or done.then is Then.LISTEN:
            return done if done.code >= 300 else own
        return Reply(own.code, own.enhanced, *own.lines, then=done.then)
