"""The Lua script: it answers as the local table does, and every key expires."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackhole.rules.attempt_store import Update, count_attempt
from blackhole.rules.conduct import GrowingCount, RefusalCount
from blackhole.rules.limiters import RetryWindow, UseCount
from blackhole.rules.quotas import SlidingCount, TokenCount, WindowCount
from blackhole.store.attempts import AttemptTable
from blackhole.store.redis_script import LEASE_SECONDS, READ_CLOCK, SCRIPT, request_words
from tests.redis_server import RedisServer


class Scripted:
    """The script, run for one request at a time, with a clock that is set by hand."""

    def __init__(self, redis: RedisServer) -> None:
        self.redis = redis
        self.script = SCRIPT.replace(READ_CLOCK, "local now = tonumber(redis.call('GET', 'clock'))")
        assert self.script != SCRIPT

    def ask(self, key: str, text: str, now: float) -> int:
        self.redis.ask("SET", "clock", round(now * 1e6))
        (answer,) = self.redis.ask("EVAL", self.script, 2, "secret", key, "s", text)
        return int(answer)


CHANGES: list[Update[int]] = [
    count_attempt,
    RetryWindow(300.0, 900.0).blocks_attempt,
    RetryWindow(0.0, 900.0).blocks_attempt,
    RetryWindow(0.5, 600.25).blocks_attempt,
    WindowCount(1, 2, 400.0).spend,
    WindowCount(30, 100, 1000.5).spend,
    WindowCount(0, 0, 60.0).spend,
    WindowCount(5, 4, 60.0).spend,
    UseCount(2).take,
    SlidingCount(1, 0, 60.0).spend_sliding,
    SlidingCount(1, 3, 900.0).spend_sliding,
    SlidingCount(7, 100, 1000.5).spend_sliding,
    SlidingCount(1, 2, 12.5).spend_sliding,
    SlidingCount(3000, 5000, 1200.0).spend_sliding,
    SlidingCount(2**31, 2**32 - 1, 86400.0).spend_sliding,
    TokenCount(1, 3, 2, 700.0).spend_tokens,
    TokenCount(10, 25, 7, 333.3).spend_tokens,
    TokenCount(1, 1, 101, 3600.0).spend_tokens,
    TokenCount(2**31, 2**32 - 1, 2**40, 86400.0).spend_tokens,
    TokenCount(2, 1, 5, 60.0).spend_tokens,
    GrowingCount(1, 2, 2.0, 9, 400.0, 900.0, 3).spend_growing,
    GrowingCount(3, 5, 1.3, 50, 300.0, 300.0, 9).spend_growing,
    GrowingCount(2**31, 2**31, 1.9, 2**32 - 1, 600.25, 1800.5, 2).spend_growing,
    GrowingCount(1, 1, 1.1, 2**32 - 1, 0.5, 1000.0, 62).spend_growing,
    RefusalCount(1, 0, 2, 0.0, 900.0).weigh_refusals,
    RefusalCount(1, 0, 2, 0.5, 900.0).weigh_refusals,
    RefusalCount(0, 1, 2, 0.5, 900.0).weigh_refusals,
    RefusalCount(2**26, 2**25, 2, 0.5, 900.0).weigh_refusals,
]


@settings(deadline=None, max_examples=60)
@given(
    change=st.sampled_from(CHANGES),
    steps=st.lists(
        st.one_of(
            st.sampled_from([0.0, 299.999999, 300.0, 400.0, 600.0, 900.0, 1000.5]), st.integers(0, 700)
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_the_script_answers_as_the_local_table_does(
    shared_redis: RedisServer, change: Update[int], steps: list[float]
) -> None:
    shared_redis.ask("FLUSHALL")
    there, here, now = Scripted(shared_redis), AttemptTable(sets=1), 1_700_000_000.0
    for step in steps:
        now += step
        assert there.ask("key", request_words(change), now) == here.update(b"key", now, change)


def test_refused_recipients_are_weighed_as_by_the_local_table(redis: RedisServer) -> None:
    there, here = Scripted(redis), AttemptTable(sets=1)
    for number in range(40):
        refused = int(number % 3 == 1)
        change = RefusalCount(1 - refused, refused, 4, 0.3, 10.0).weigh_refusals
        now = 1_700_000_000.0 + number
        assert there.ask("key", request_words(change), now) == here.update(b"key", now, change)


@pytest.mark.parametrize(
    ("change", "lasts"),
    [
        (count_attempt, 7 * 86400),
        (RetryWindow(300.0, 900.0).blocks_attempt, 900),
        (WindowCount(1, 2, 90.0).spend, 90),
        (SlidingCount(1, 2, 90.0).spend_sliding, 96),
        (SlidingCount(1, 300, 90.0).spend_sliding, 120),
        (TokenCount(1, 2, 2, 180.0).spend_tokens, 90),
        (GrowingCount(1, 2, 2.0, 9, 90.0, 180.0, 3).spend_growing, 360),
        (RefusalCount(1, 0, 2, 0.5, 90.0).weigh_refusals, 90),
    ],
)
def test_every_record_expires(redis: RedisServer, change: Update[int], lasts: float) -> None:
    there = Scripted(redis)
    there.ask("key", request_words(change), 1e9)
    assert lasts - 60 < redis.ask("PTTL", "key") / 1000 <= lasts


def test_a_triplet_that_passed_the_greylist_is_kept_for_35_days(redis: RedisServer) -> None:
    there = Scripted(redis)
    text = request_words(RetryWindow(300.0, 900.0).blocks_attempt)
    assert [there.ask("key", text, at) for at in (1000, 1300, 1301)] == [1, 0, 0]
    assert redis.ask("PTTL", "key") / 86400e3 > 34.9


def test_counting_in_a_window_does_not_extend_it(redis: RedisServer) -> None:
    there = Scripted(redis)
    text = request_words(WindowCount(1, 9, 90.0).spend)
    assert [there.ask("key", text, at) for at in (1000, 1080)] == [0, 0]
    assert redis.ask("PTTL", "key") <= 10000


def test_a_slot_that_is_not_renewed_is_free_when_its_lease_ends(redis: RedisServer) -> None:
    there = Scripted(redis)

    def at(now: float, text: str) -> int:
        return there.ask("slot", text, now)

    assert [at(1000, f"acquire 2 w{n}.1") for n in range(3)] == [0, 0, 1]
    assert at(1000 + LEASE_SECONDS - 1, "acquire 2 w4.1") == 1
    assert at(1000 + LEASE_SECONDS - 1, "renew w0.1") == 0
    assert [at(1001 + LEASE_SECONDS, f"acquire 2 w{n}.1") for n in (4, 5)] == [0, 1]
    assert at(1001 + LEASE_SECONDS, "release w0.1") == 0
    assert at(1001 + LEASE_SECONDS, "acquire 2 w5.1") == 0
    assert sorted(redis.ask("ZRANGE", "slot", 0, -1)) == ["w4.1", "w5.1"]
