"""What the sessions of one listener share: its dispatch table, bound to its configuration and its policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from blackhole.smtp.arguments import Mailbox
from blackhole.smtp.auth import Credentials
from blackhole.smtp.commands import COMMANDS, OTHER, Command, commands_of, syntax_error
from blackhole.smtp.directives import DIRECTIVE_FIELDS
from blackhole.smtp.error_budget import with_limits
from blackhole.smtp.events import EventNumbers, ReplyEvents
from blackhole.smtp.inspection import InspectionPlan
from blackhole.smtp.listener_constants import listener_constants
from blackhole.smtp.policy import ListenerPolicy
from blackhole.smtp.randomness import RandomSource
from blackhole.smtp.replies import Reply
from blackhole.smtp.state import PHASES, STAGE_COUNT, ListenerConfig, ListenerConstants

TraceFunction = Callable[[Any, str, bytes], None]
"""Takes the session, "RECV" or "SEND", and a line without its end. The session's `traced_id` is the id of the
transaction to which the line belongs."""


FastPath = Callable[[Any, bytes], bytes | None]
"""Takes a session and its input; returns the replies to all of it, or None to leave it to the session."""


def no_fast_path(session: Any, data: bytes) -> None:
    """Leave all input to the session."""


def answer_with(session: Any, reply: Reply) -> Reply:
    """Return the reply to a command that is not carried out."""
    return reply


class BoundCommand:
    """A command of the dispatch table as one listener has it: with its limits, its policy and its events."""

    __slots__ = (
        "allowed",
        "asks_policy",
        "delay",
        "do",
        "events",
        "is_auth",
        "is_envelope",
        "is_helo",
        "last",
        "needs_auth",
        "ordered",
        "phase",
        "read",
        "refuse",
        "refused",
        "syntax_error",
        "verb",
    )

    def __init__(
        self, command: Command, config: ListenerConfig, policy: ListenerPolicy, events: EventNumbers
    ) -> None:
        self.verb: Final = command.verb.encode()
        self.phase: Final = command.phase or (command.verb if command.verb in PHASES else "other")
        self.read: Final = command.read
        self.do: Final = with_limits(self.phase, command.do, config.limits)
        self.refuse: Final = with_limits(self.phase, answer_with, config.limits)
        """Takes a reply in place of the argument, and returns it unless a limit is exceeded."""
        self.last: Final = command.last
        self.needs_auth: Final = command.needs_auth
        self.syntax_error: Final[Reply] = syntax_error(command)
        self.allowed: Final = tuple(map(command.allowed, range(STAGE_COUNT)))
        """By stage: whether the command is in order."""
        self.refused: Final = tuple(
            not allowed and (config.strict or command.always_refused(stage))
            for stage, allowed in enumerate(self.allowed)
        )
        """By stage: whether the command is refused because of its order."""
        self.ordered: Final = config.strict
        """The order is enforced, not only recorded."""
        self.asks_policy: Final = self.phase in policy.phases
        self.delay: Final = None if self.phase == "CONNECT" else config.delay
        """Seconds before the reply, at least and at most. The greeting is never delayed by configuration."""
        self.events: Final = ReplyEvents(events, self.phase)
        """The number of the event for a reply, by its code."""
        self.is_envelope: Final = self.phase in ("MAIL", "RCPT")
        self.is_helo: Final = self.phase in ("HELO", "EHLO")
        self.is_auth: Final = self.phase == "AUTH"

    def described(self, argument: Any) -> tuple[bytes, int]:
        """Return the address, name or user of a parsed argument, and the size that it declares."""
        if self.is_envelope:
            mailbox: Mailbox = argument
            return mailbox.address, int(mailbox.parameters.get(b"SIZE", b"0"))
        if self.is_auth and isinstance(argument, Credentials):
            return argument.user, 0
        return (argument, 0) if self.is_helo else (b"", 0)


class NewestEngine:
    """Holds the engine of a listener that is in force, for those that it has replaced.

    A transaction that stays open keeps its engine, which so keeps the newest, and none between the two.
    """

    __slots__ = ("engine",)

    def __init__(self, engine: EngineTables) -> None:
        self.engine = engine


class EngineTables:
    """The part of an engine that its sessions use."""

    def __init__(
        self,
        config: ListenerConfig,
        random_source: RandomSource,
        trace: TraceFunction | None,
        policy: ListenerPolicy,
        events: EventNumbers,
        inspection: InspectionPlan,
    ) -> None:
        self.config: Final = config
        self.inspection: InspectionPlan = inspection
        self.policy: Final = policy
        self.wanted_fields: Final = policy.header_names and policy.header_names | DIRECTIVE_FIELDS
        """The names of the fields that are collected from a message in pieces; empty if nobody reads them."""
        self.random_source: Final = random_source
        self.trace: Final = trace
        self.constants: Final[ListenerConstants] = listener_constants(config, events)
        self.new_id: Final = partial(random_source.getrandbits, 40)
        self.sizes: list[int] = []
        """Octets of each message that has ended since the caller last emptied the list."""
        self.newest: NewestEngine = NewestEngine(self)
        """The same object for all engines that have replaced one another."""
        self.successor: NewestEngine | None = None
        """The same, if this engine was replaced."""
        self.fast_path: FastPath = no_fast_path

        def bound(rows: tuple[Command, ...]) -> dict[str, BoundCommand]:
            of_service = commands_of(config.service, rows)
            return {row.verb: BoundCommand(row, config, policy, events) for row in of_service}

        other, commands = bound(OTHER), bound(COMMANDS)
        self.connect: Final = commands.pop("CONNECT")
        self.end_of_message: Final = commands.pop(".")
        self.unknown: Final = other.pop("other")
        self.auth: Final = commands["AUTH"]
        self.bdat: Final = commands["BDAT"]
        self.offers_chunks: Final = self.constants.offers[0].has_verb(self.bdat.verb)
        """Every client may send BDAT, whatever the reply to its EHLO was."""
        self.data: Final = commands["DATA"]
        self.mail: Final = commands["MAIL"]
        self.starttls: Final = commands["STARTTLS"]
        self.commands: Final[Mapping[bytes, BoundCommand]] = {
            verb.encode(): command for verb, command in (other | commands).items()
        }
