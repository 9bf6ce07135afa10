"""Keys of DKIM signatures that a resolver is asked for, in the background and within limits."""

from __future__ import annotations

import asyncio
import os
import smtplib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from blackhole.messages.dkim_verification import AWAITED_KEY, SigningKey
from blackhole.messages.message_checks import check_message, verify_awaiting
from blackhole.net import resolved_keys
from blackhole.net.dkim_keys import PublishedKey, UnusableKey
from blackhole.net.dns_records import DNSClient, DNSLookupError, TextRecords
from blackhole.net.resolved_keys import ResolvedKeys, signing_keys
from blackhole.settings import DNSServer as Resolver
from blackhole.settings import OperatorError, Settings
from blackhole.smtp.inspection import MAX_AWAITING, MAX_AWAITING_OCTETS, InspectionPlan
from blackhole.smtp.violations import IN_SIGNATURES
from tests import dns_server
from tests.dns_server import requires_dnsmasq
from tests.engines import make_engine
from tests.option_samples import read, refusal
from tests.program import Program, free_port, run, wait_for
from tests.smtp_client import SMTPClient
from tests.test_dkim import NAME, KeyPair, rsa_keys, signed_message
from tests.test_worker_imports import record_imports


@pytest.fixture(scope="module")
def keys() -> KeyPair:
    return rsa_keys(1024)


class Lookups:
    """A lookup whose answers are given, and the names that it was asked for; a clock that is set by hand."""

    def __init__(self, answers: Mapping[bytes, TextRecords | Exception]) -> None:
        self.answers = answers
        self.asked: list[bytes] = []
        self.silent = False
        self.now = 1000.0

    async def __call__(self, name: bytes) -> TextRecords:
        self.asked.append(name)
        await (asyncio.Event().wait() if self.silent else asyncio.sleep(0))
        answer = self.answers.get(name, TextRecords((), 0))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def keys(self, known: Mapping[bytes, SigningKey] | None = None) -> ResolvedKeys:
        return ResolvedKeys(known or {}, self, lambda: self.now)


def in_loop(play: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await play()

    asyncio.run(main())


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.pure
def test_key_is_known_once_the_answer_has_come_and_for_its_time_to_live(keys: KeyPair) -> None:
    lookups = Lookups({NAME: TextRecords((b"v=spf1 -all", keys.record), 120)})
    known = lookups.keys()

    async def play() -> None:
        assert known.get(NAME) is known.get(NAME) is AWAITED_KEY
        await settle()
        found = known.get(NAME)
        assert isinstance(found, PublishedKey)
        assert found.fault == ""
        lookups.now += 119
        assert known.get(NAME) is found
        assert lookups.asked == [NAME]
        lookups.now += 1
        assert known.get(NAME) is AWAITED_KEY
        await settle()
        assert isinstance(known.get(NAME), PublishedKey)
        assert lookups.asked == [NAME, NAME]

    in_loop(play)


@pytest.mark.pure
@pytest.mark.parametrize(("seconds", "kept"), [(0, 60), (61, 61), (90000, 3600)])
def test_answer_is_kept_for_a_minute_at_least_and_an_hour_at_most(seconds: int, kept: int) -> None:
    lookups = Lookups({NAME: TextRecords((), seconds)})
    known = lookups.keys()

    async def play() -> None:
        known.get(NAME)
        await settle()
        lookups.now += kept - 1
        assert isinstance(known.get(NAME), UnusableKey)
        lookups.now += 1
        assert known.get(NAME) is AWAITED_KEY

    in_loop(play)


@pytest.mark.pure
def test_key_of_the_file_is_not_asked_for(keys: KeyPair) -> None:
    lookups = Lookups({})
    of_file = PublishedKey(keys.record)
    assert lookups.keys({NAME: of_file}).get(NAME) is of_file
    assert lookups.asked == []


@pytest.mark.pure
@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        ((), "no key is published"),
        ((b"v=spf1 -all",), "the record of the key is wrong: it is no DKIM record"),
        ((b"v=DKIM1; p=YQ==",), "the record of the key is wrong: p= is no public key"),
        ((b"v=DKIM1; p=",), "the key was revoked"),
    ],
)
def test_what_is_published_in_place_of_a_key_is_a_fault(
    texts: tuple[bytes, ...], fault: str, keys: KeyPair
) -> None:
    known = Lookups({NAME: TextRecords(texts, 0)}).keys()

    async def play() -> None:
        text = signed_message(keys)
        assert not check_message(text, True, keys=known).is_verified
        await settle()
        checked = check_message(text, True, keys=known)
        assert checked.is_verified
        (found,) = (one for one in checked.faults if one.violation == "bad-signature")
        assert found.detail.startswith(fault)

    in_loop(play)
    assert UnusableKey("").verifies(b"", b"") is False


@pytest.mark.pure
def test_nothing_is_said_while_the_resolver_does_not_answer(
    keys: KeyPair, caplog: pytest.LogCaptureFixture
) -> None:
    """The name is asked for again after half a minute, and the log has a line a minute."""
    lookups = Lookups({NAME: DNSLookupError("no answer within 5 s"), b"x" * 300: ValueError("no name")})
    known = lookups.keys()

    async def play() -> None:
        for name in (NAME, b"x" * 300):
            assert known.get(name) is AWAITED_KEY
            await settle()
            assert known.get(name) is None
        lookups.now += resolved_keys.RETRY_SECONDS
        assert known.get(NAME) is AWAITED_KEY
        assert known.get(b"x" * 300) is None
        await settle()

    in_loop(play)
    assert lookups.asked == [NAME, b"x" * 300, NAME]
    assert [record.getMessage() for record in caplog.records] == [
        "dkim_resolver: s._domainkey.a.test: no answer within 5 s"
    ]


@pytest.mark.pure
def test_clients_cannot_ask_for_more_names_than_the_limits_allow() -> None:
    """Neither in a second, nor at a time, nor to be kept."""
    lookups = Lookups({})
    known = lookups.keys()

    async def play() -> None:
        found = [known.get(b"%d" % number) for number in range(100)]
        assert found.count(AWAITED_KEY) == resolved_keys.MAX_OUTSTANDING
        assert found.count(None) == 100 - resolved_keys.MAX_OUTSTANDING
        assert len(known._outstanding) == resolved_keys.MAX_OUTSTANDING
        await settle()
        assert len(lookups.asked) == resolved_keys.MAX_QUERIES_PER_SECOND
        for number in range(100, 200):
            known.get(b"%d" % number)
        await settle()
        assert len(lookups.asked) == resolved_keys.MAX_QUERIES_PER_SECOND
        for number in range(2 * resolved_keys.MAX_KEPT_KEYS):
            lookups.now += 0.1
            known.get(b"n%d" % number)
            await settle()
        assert len(lookups.asked) > 2000
        assert len(known._kept) == resolved_keys.MAX_KEPT_KEYS
        lookups.silent = True
        for number in range(100):
            lookups.now += 1
            known.get(b"m%d" % number)
        assert len(known._outstanding) == resolved_keys.MAX_OUTSTANDING

    in_loop(play)


@pytest.mark.pure
def test_signature_is_verified_when_its_key_has_come(keys: KeyPair) -> None:
    lookups = Lookups({NAME: TextRecords((keys.record,), 0)})
    known = lookups.keys()

    async def play() -> None:
        text = signed_message(keys)
        broken = [check_message(one, True, keys=known) for one in (text, text + b"x\r\n")]
        assert [checked.is_verified for checked in broken] == [False, False]
        waiting = [checked.awaiting for checked in broken]
        assert verify_awaiting(waiting[0], known) is None
        await settle()
        late = [verify_awaiting(signatures, known) for signatures in waiting]
        assert [checked is not None and checked.is_verified for checked in late] == [True, True]
        faults = [[fault.violation for fault in checked.faults] for checked in late if checked is not None]
        assert faults == [[], ["bad-body-hash"]]
        assert check_message(text, True, keys=known).awaiting == ()
        none = verify_awaiting(waiting[0], {})
        assert none is not None
        assert not none.is_verified

    in_loop(play)
    assert AWAITED_KEY.verifies(b"", b"") is False


@pytest.mark.pure
def test_messages_that_wait_for_keys_are_bounded(keys: KeyPair) -> None:
    known = Lookups({}).keys()

    async def play() -> None:
        (signature,) = check_message(signed_message(keys), True, keys=known).awaiting
        plan = InspectionPlan("all")
        plan.await_keys(None, (signature._replace(data=bytes(MAX_AWAITING_OCTETS)), signature))
        assert plan.awaiting == []
        for _ in range(2 * MAX_AWAITING):
            plan.await_keys(None, (signature,))
        assert len(plan.awaiting) == MAX_AWAITING

    in_loop(play)


@pytest.mark.pure
def test_session_keeps_what_waits_for_a_key(keys: KeyPair) -> None:
    known = Lookups({}).keys()

    async def play() -> None:
        engine = make_engine(inspect_content=True, dkim_keys=known)
        session = engine.session()
        session.greet()
        for chunk in (
            b"EHLO c.test\r\n",
            b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n",
            signed_message(keys) + b".\r\n",
        ):
            session.receive(chunk)
        ((waiting, signatures),) = engine.inspection.awaiting
        assert waiting is session
        assert [signature.key_name for signature in signatures] == [NAME]

    in_loop(play)


# The option.


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("127.0.0.1", "127.0.0.1:53"),
        ("192.0.2.53:5353", "192.0.2.53:5353"),
        ("::1", "[::1]:53"),
        ("[::1]", "[::1]:53"),
        ("[::1]:5353", "[::1]:5353"),
        ("", ""),
    ],
)
def test_resolver_is_an_address_with_a_port_or_without(text: str, shown: str) -> None:
    assert str(read(f"--dkim-resolver={text}").dkim_resolver) == shown


@pytest.mark.parametrize(
    "text", ["dns.test", "dns.test:53", "127.0.0.1:0", "127.0.0.1:65536", "[::1]:", ":53"]
)
def test_resolver_that_is_no_address_is_an_error_of_the_operator(text: str) -> None:
    code, message = refusal(f"--dkim-resolver={text}")
    assert code == os.EX_CONFIG or code == os.EX_USAGE
    assert "expected a" in message


def test_no_package_is_an_error_of_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    settings = Settings(dkim_resolver=Resolver("127.0.0.1"))
    for package in ("dns.asyncquery", "cryptography.exceptions"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            with pytest.raises(OperatorError, match=r"dkim_resolver needs a package: pip install"):
                signing_keys(settings)


# Against a real DNS server.

OTHER = "t._domainkey.a.test"


@requires_dnsmasq
def test_client_of_a_real_server(tmp_path: Path, keys: KeyPair) -> None:
    records = {
        NAME.decode(): keys.record.decode(),
        "long.a.test": 1100 * "x",
        "too-long.a.test": 1300 * "x",
    }
    with dns_server.DNSServer(records, tmp_path / "log") as server:
        client = DNSClient(Resolver("127.0.0.1", server.port))

        async def play() -> None:
            assert (await client.text_records(NAME)).texts == (keys.record,)
            assert (await client.text_records(b"long.a.test")).texts == (1100 * b"x",)
            assert (await client.text_records(b"none.a.test")).texts == ()
            with pytest.raises(DNSLookupError, match="the answer has more than 1232 octets"):
                await client.text_records(b"too-long.a.test")
            with pytest.raises(DNSLookupError, match="the answer is REFUSED"):
                await client.text_records(b"a.example")
            for name in (64 * b"x" + b".test", 130 * b"x." + b"test", b"\xff.test"):
                with pytest.raises(ValueError, match="no name of the DNS"):
                    await client.text_records(name)

        in_loop(play)
    assert server.queries("none.a.test") == 1


def test_server_that_is_silent_is_waited_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr("blackhole.net.dns_records.QUERY_TIMEOUT", 0.05)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        client = DNSClient(Resolver("127.0.0.1", silent.getsockname()[1]))

        async def play() -> None:
            with pytest.raises(DNSLookupError, match=r"no answer within 0\.05 s"):
                await client.text_records(NAME)

        in_loop(play)


PATIENCE = 70.0
"""Seconds: an answer can come too late on a busy machine; after half a minute the name is asked for again."""


def verified(program: Program) -> int:
    """Return how many signatures were verified."""
    return program.snapshot().inspected[IN_SIGNATURES].inspected


@requires_dnsmasq
def test_program_verifies_signatures_with_keys_of_a_resolver(tmp_path: Path, keys: KeyPair) -> None:
    """Also of the first message with a key, whose connection is closed when the key comes."""
    pid = tmp_path / "pid"
    (tmp_path / "shared").mkdir()
    imports, env = record_imports(tmp_path / "shared")
    text = signed_message(keys)
    unpublished = text.replace(b"; s=s;", b"; s=none;")
    assert unpublished != text
    with dns_server.DNSServer({NAME.decode(): keys.record.decode()}, tmp_path / "log") as server:
        options = "--workers=1", "--inspect=all", "--inspect-content", f"--dkim-resolver={server.address}"
        with Program(f"--pid={pid}", *options, env=env) as program:

            def report_on(message: bytes) -> str:
                """Send a message, and return the report once it was verified."""
                before = verified(program)

                def is_verified() -> bool:
                    with smtplib.SMTP(*program.address, local_hostname="c.test", timeout=60) as client:
                        client.sendmail("ann@a.test", ["bob@b.test"], message)
                    program.wait_until_idle()
                    with suppress(AssertionError):
                        wait_for(lambda: verified(program) > before, "the verdict", 10)
                    return verified(program) > before

                wait_for(is_verified, "the message is verified", PATIENCE)
                return run("report", f"--pid={pid}", "--show-lines").stdout

            said = report_on(text)
            assert "bad-signature" not in said
            assert "bad-body-hash" not in said
            assert "In 1 connection, " in report_on(text + b"x\r\n").partition("MUST   bad-body-hash: ")[2]
            assert "no key is published" in report_on(unpublished).partition("MUST   bad-signature: ")[2]
            assert program.stop() == 0
        assert server.queries(NAME.decode())
        assert server.queries("none._domainkey.a.test")
    assert imports.read_text().split() == [], "a worker may have no right to read more modules"


def test_mail_does_not_wait_for_a_resolver_that_is_not_there(tmp_path: Path, keys: KeyPair) -> None:
    """A worker that stops does not wait for an answer either."""
    text = signed_message(keys)
    options = "--inspect=all", "--inspect-content", f"--dkim-resolver=127.0.0.1:{free_port()}"
    with Program("--workers=1", *options) as program:
        with SMTPClient(program.address) as client:
            for _ in range(20):
                assert client.send_message(text).startswith("250")
        program.wait_until_idle()
        assert verified(program) == 0
        assert program.stop() == 0
