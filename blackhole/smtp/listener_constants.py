"""What a listener repeats in every session: made of its configuration, once."""

from __future__ import annotations

from typing import Final

from blackhole.smtp.auth import offered_mechanisms
from blackhole.smtp.commands import explanations
from blackhole.smtp.events import EventNumbers, LimitEvents, sampled_violation_events, violation_events
from blackhole.smtp.extensions import keywords, parameters
from blackhole.smtp.offer import Offer
from blackhole.smtp.replies import Reply
from blackhole.smtp.state import LMTP, SMTP, ListenerConfig, ListenerConstants
from blackhole.smtp.violations import IN_MESSAGES, OF_CONTENT

GREETING_WORDS: Final = {SMTP: "ESMTP", LMTP: "LMTP"}
"""The name of the protocol in the greeting, by service."""


def listener_constants(config: ListenerConfig, numbers: EventNumbers) -> ListenerConstants:
    """Make what a listener with this configuration repeats in every session."""
    name = config.hostname
    offers = [
        keywords(config, secure, names_clients) for names_clients in (False, True) for secure in (False, True)
    ]
    return ListenerConstants(
        config=config,
        greeting=Reply(220, "", f"{name} {GREETING_WORDS[config.service]} Blackhole"),
        helo=Reply(250, "", name),
        ehlo=tuple(Reply(250, "", name, *lines) for lines in offers),
        offers=tuple(map(Offer, offers)),
        help=explanations(config.service),
        mechanisms=offered_mechanisms(config.auth_mechanisms, config.passwords),
        parameters=(parameters(config, False), parameters(config, True)),
        violation_events=violation_events(numbers),
        limit_events=LimitEvents(numbers),
        sampled_violation_events=sampled_violation_events(numbers),
        inspected_message=numbers.inspection(IN_MESSAGES),
        content_inspections={what: numbers.inspection(what) for what in OF_CONTENT},
    )
