"""The delivery of replies: how a reply leaves a session, at once or in drops, and what follows from it."""

from __future__ import annotations

from math import ceil
from typing import Final, NamedTuple

from blackhole.smtp import replies
from blackhole.smtp.after_421 import InputAfter421
from blackhole.smtp.engine_tables import BoundCommand, EngineTables
from blackhole.smtp.faults import Fault, partial_reply
from blackhole.smtp.message_body import ChunkedBody, DotStuffedBody
from blackhole.smtp.policy import SessionPolicy
from blackhole.smtp.recipient_replies import RecipientReplies
from blackhole.smtp.replies import NextAction, Reply
from blackhole.smtp.state import CHUNKED, SessionState, ViolationContext

READ: Final = NextAction.READ
READ_BODY: Final = NextAction.READ_BODY
"""To look up a member of an enumeration takes 50 ns, to look up a name of the module 5."""

DRIP_INTERVAL: Final = 0.1
"""Seconds between two pieces of a reply that drips."""

MISSING_SIZE: Final = 2048
EXCESS_SIZE: Final = 1024
"""Octets by which the declared size of a message may be too small or too large in any case. Exim adds 1024 to
what it knows, for what it may add to the message. Postfix does not count what a milter adds: OpenDKIM adds
536 octets for a signature with a key of 2048 bits."""


class DeferredReply(NamedTuple):
    """A reply that is held back."""

    command: BoundCommand
    reply: Reply
    fault: Fault | None
    rest: bytes | None = None
    """What is left of a reply that drips; None: nothing of it has left."""


class ReplyDelivery(SessionState):
    """A session as far as its replies are concerned.

    Methods that emit take the list of what leaves now, and return True when nothing may follow for now.
    """

    __slots__ = (
        "after_421",
        "body",
        "cut_off_messages",
        "deferred",
        "engine",
        "extra_replies",
        "in_body",
        "next_action",
        "policy",
        "recipient_replies",
        "single_event",
        "unprocessed",
        "wait",
    )

    def __init__(self, engine: EngineTables, policy: SessionPolicy, secure: bool, client: str) -> None:
        # super() takes twice as long
        SessionState.__init__(self, engine.constants, engine.new_id, secure, client)
        self.engine = engine
        self.policy = policy
        self.next_action = READ
        """What the caller has to do once the replies that it was given have left."""
        self.wait = 0.0
        """Seconds to sleep with NextAction.SLEEP; 0 lets other sessions have their turn."""
        self.single_event = 0
        """The event of the only reply, if there is no other event; else 0."""
        self.cut_off_messages = 0
        """Those of them whose reply a fault has cut off."""
        self.extra_replies = 0
        """Replies to messages beyond one for each, in LMTP."""
        self.recipient_replies: RecipientReplies | None = None
        """The replies to a message of LMTP that have yet to leave."""
        self.in_body = False
        """A message is being received: what comes is its body."""
        self.body: DotStuffedBody | ChunkedBody | None = None
        """What is known of the body under way; None before its first octet, but for a chunk."""
        self.deferred: DeferredReply | None = None
        """The reply that is held back."""
        self.after_421: InputAfter421 | None = None
        """Judges what the client says behind a 421; None: there was none."""
        self.unprocessed = b""
        """Input that is not answered yet: an incomplete line, or what waits behind a reply or a look-up."""

    @property
    def in_message(self) -> bool:
        """Whether a message has begun and not come to its end: its body, or the next chunk, is to come."""
        return self.in_body or self.stage & CHUNKED > 0

    @property
    def answered_messages(self) -> int:
        """The number of messages whose reply has left, or leaves now; in LMTP of the replies to them."""
        answered, held = self.messages + self.extra_replies - self.cut_off_messages, self.deferred
        drips = held is not None and held.rest is not None and held.command is self.engine.end_of_message
        return answered - 1 if drips else answered

    def emit(self, out: list[bytes], command: BoundCommand, reply: Reply, fault: Fault | None) -> bool:
        """Emit a reply, or as much of it as a fault lets through."""
        wire = reply.wire
        if command is self.engine.end_of_message:
            if self.recipient_replies is None:
                wire = self.finish_message(reply)
            else:
                wire = self._finish_recipient(self.recipient_replies, reply, fault)
        if fault is None:
            return self._emit_all(out, command, reply, wire, None)
        if fault.input is not None:
            stopped = self._emit_all(out, command, reply, wire, None)
            if reply.code < 400:
                self.input_fault = fault.input
                if command.is_helo or command is self.engine.connect:
                    self.lasting_fault = fault.input
            return stopped
        if fault.rate:
            return self._drip(out, command, reply, fault, wire)
        if fault.share < 1:
            out.append(partial_reply(wire, fault.share))
            if command is self.engine.end_of_message:
                self.cut_off_messages += 1
                self.policy.message_answered(self, reply.code, fault)
        else:
            self._emit_all(out, command, reply, wire, fault)
        return self._stop(fault.next_action)

    def emit_deferred(self, out: list[bytes], data: bytes) -> bool:
        """Emit the reply that was held back, or its next drop; `data` is the input behind it."""
        command, reply, fault, rest = self._take_deferred()
        if rest is None:
            stopped = self.emit(out, command, reply, fault)
        else:
            assert fault is not None
            stopped = self._drip(out, command, reply, fault, rest)
        if self.deferred is not None or self.next_action is NextAction.CHANGE_CLIENT:
            self.unprocessed = data
        return stopped

    def _take_deferred(self) -> DeferredReply:
        """Return the reply that was held back, which is not any more."""
        deferred = self.deferred
        assert deferred is not None
        self.deferred = None
        return deferred

    def defer(self, deferred: DeferredReply, seconds: float, early: bool) -> None:
        """Hold a reply back for so many seconds. `early`: the client has sent something behind it already."""
        self.deferred = deferred
        self.next_action = NextAction.SLEEP
        self.wait = seconds
        if deferred.command is self.engine.end_of_message:
            # The client may wait for this reply and those behind it together (RFC 2920 3.1).
            self.policy.message_reply_delayed(self, early and not self.offered.pipelining)

    def _drip(self, out: list[bytes], command: BoundCommand, reply: Reply, fault: Fault, wire: bytes) -> bool:
        """Emit the next drop of a reply; True while there is more of it."""
        size = ceil(fault.rate * DRIP_INTERVAL)
        if len(wire) <= size:
            return self._emit_all(out, command, reply, wire, None)
        out.append(wire[:size])
        self.defer(
            DeferredReply(command, reply, fault, wire[size:]), size / fault.rate, bool(self.unprocessed)
        )
        return True

    def _emit_all(
        self, out: list[bytes], command: BoundCommand, reply: Reply, wire: bytes, fault: Fault | None
    ) -> bool:
        """Emit a whole reply, or the last drop of one, and do what it means for the session."""
        out.append(wire)
        if reply.next_action is NextAction.CHANGE_CLIENT:
            return self._stop(reply.next_action)  # The greeting is the reply that is counted.
        if command is self.engine.end_of_message:
            self.policy.message_answered(self, reply.code, fault)
        self.counted_events.append(command.events[reply.code])
        if self.engine.trace is not None:
            for line in wire.splitlines():
                self.engine.trace(self, "SEND", line)
        if reply.next_action is READ:
            return False
        if reply.next_action is READ_BODY:
            self.begin_body()
            return False
        if reply.code == replies.NO_REPLY.code:
            self.after_421 = InputAfter421(self.engine, command, self.offered.pipelining)
        return self._stop(reply.next_action)

    def begin_body(self) -> None:
        """Take what comes from now on as the body of a message."""
        self.in_body = True
        self.body = None
        self.octets = 0

    def _finish_recipient(self, awaited: RecipientReplies, reply: Reply, fault: Fault | None) -> bytes:
        """End the message for one of its recipients; return the reply as octets.

        The connection may end with the reply. Then no other recipient is answered.
        """
        ends = reply.next_action is NextAction.CLOSE or (fault is not None and fault.next_action is not READ)
        if awaited.is_last or ends:
            self.recipient_replies = None
            return self.finish_message(reply)
        awaited.advance()
        self.extra_replies += 1
        return reply.wire % self.id if reply is replies.QUEUED else reply.wire

    def finish_message(self, reply: Reply) -> bytes:
        """End the message, accepted or not; return the reply to it as octets."""
        self.messages += 1
        self.engine.sizes.append(self.octets)
        if self.size >= 0:
            self._check_declared_size()
        wire = reply.wire
        if reply is replies.QUEUED:
            new_id = self.new_id
            wire = wire % (self._id or new_id())
        elif reply.next_action is NextAction.CLOSE:
            self.next_action = NextAction.CLOSE
        self.reset()
        return wire

    def _check_declared_size(self) -> None:
        """Record a size of MAIL that is far from the size of the message (RFC 1870 6).

        Clients do not count the dots that they double (RFC 1870 5), which are a third of a line of one dot.
        Of a message of more than twice the limit, some octets more have come, or many: they do not count.
        """
        limit = self.engine.config.message_size_limit
        octets = min(self.octets, 2 * limit + 1) if limit else self.octets
        missing = octets - self.size
        if missing > max(self.size // 3, MISSING_SIZE) or -missing > max(self.size // 10, EXCESS_SIZE):
            text = f"SIZE={self.size}, {octets} octets came"
            violation_context = ViolationContext(self.engine.end_of_message.phase, detail=text)
            self.record_violation("size-wrong", violation_context)

    def _stop(self, next_action: NextAction) -> bool:
        """Say no more: what has come behind the last reply is not answered."""
        self.next_action = next_action
        self.unprocessed = b""
        return True
