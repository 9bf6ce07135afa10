"""What an engine has in place of a policy and of numbers for events, where it is given none."""

from __future__ import annotations

import pytest

from blackhole.smtp.events import UNCOUNTED
from blackhole.smtp.policy import NO_SESSION_POLICY
from tests.engines import make_engine

pytestmark = pytest.mark.pure


def test_no_policy_leaves_every_command_as_it_is() -> None:
    session = make_engine().session()
    NO_SESSION_POLICY.note(session, "MAIL", b"ann@example.com")
    assert NO_SESSION_POLICY.accept_recipient(session, b"bob@example.com") is None
    assert NO_SESSION_POLICY.accept_message(session, b"Hello\r\n", 7) is None
    assert NO_SESSION_POLICY.decide(session, "MAIL", b"ann@example.com") is None


def test_events_that_nobody_counts_have_one_number() -> None:
    numbers = {
        UNCOUNTED.reply("MAIL", 250),
        UNCOUNTED.violation("no-quit"),
        UNCOUNTED.sampled_violation("bare-lf"),
        UNCOUNTED.limit("max_messages"),
    }
    assert len(numbers) == 1
