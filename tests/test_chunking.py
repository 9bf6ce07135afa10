"""BDAT: what a session keeps of a chunk, what rules and retries make of it, and Exim, which sends with it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.chunking import read_chunk
from tests.engines import make_engine
from tests.program import ROOT, Program, wait_for

EXIM = Path(os.environ.get("BLACKHOLE_TEST_SENDERS", ROOT / ".venv/senders")).absolute() / "usr/sbin/exim4"
"""From Debian's package exim4-daemon-light, unpacked and not installed."""

GIB = 1 << 30


def test_chunk_of_ten_gib_takes_no_memory() -> None:
    """Nothing of a chunk is kept, copied or searched: what is allocated does not depend on its length."""
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy does not tell what is allocated")
    session = make_engine().session()
    session.greet()
    piece = (b"x" * 62 + b"\r\n") * 4096
    assert session.receive(b"BDAT %d LAST\r\n" % (10 * GIB)) == b""
    session.receive(piece)
    tracemalloc.start()
    try:
        for _ in range(10 * GIB // len(piece) - 2):
            assert session.receive(piece) == b""
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert session.octets == 10 * GIB - len(piece)
    assert session.receive(piece + b"QUIT\r\n").startswith(b"250 2.0.0 OK: queued as ")
    assert peak < 4096


def test_many_chunks_take_no_memory() -> None:
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy does not tell what is allocated")
    session = make_engine().session()
    session.greet()
    group = b"BDAT 3\r\nabc" * 50

    def talk() -> None:
        session.receive(group)
        session.counted_events.clear()

    talk()
    tracemalloc.start()
    try:
        for _ in range(100):
            talk()
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert session.octets == 3 * 50 * 101
    assert left < 4096


def test_size_of_a_chunk_is_read_in_linear_time() -> None:
    """int() of 100,000 digits takes 0.1 s."""
    assert read_chunk(b"9" * 100_000) is None
    assert read_chunk(b"0" * 100_000 + b"7 last") == (7, True, True)


RETRIED = """
[[rule]]
phase = "."
recipient = "nobody@*"
reply = "554 5.0.0 No"

[[rule]]
phase = "DATA"
recipient = "later@*"
attempt = 1
reply = "451 4.3.0 Later"
"""


def deliver(program: Program, recipient: str, how: str) -> list[str]:
    """Send a message by DATA or BDAT; return the codes of the replies."""
    text = b"Message-ID: <1@client.example.com>\r\nSubject: a test\r\n\r\nHello\r\n"
    with socket.create_connection(program.address, 20) as client, client.makefile("rb") as replies:
        replies.readline()
        codes = []
        body = b"DATA\r\n" if how == "DATA" else b"BDAT %d\r\n%bBDAT 3 LAST\r\nabc" % (len(text), text)
        for data in (b"HELO client.example.com\r\n", b"MAIL FROM:<a@b.test>\r\n",
                     b"RCPT TO:<%s>\r\n" % recipient.encode(), body):  # fmt: skip
            client.sendall(data)
            codes.append(replies.readline()[:3].decode())
        if how == "BDAT":
            codes.append(replies.readline()[:3].decode())
        elif codes[-1] == "354":
            client.sendall(text + b"abc\r\n.\r\n")
            codes.append(replies.readline()[:3].decode())
        client.sendall(b"QUIT\r\n")
        assert replies.readline().startswith(b"221 ")
        return codes


def test_messages_in_chunks_are_tracked_and_counted_as_others(tmp_path: Path) -> None:
    """A message is the same however it is sent, so a refused one that comes again by DATA is a violation."""
    scenario = tmp_path / "rules.toml"
    scenario.write_text(RETRIED)
    with Program("--workers=1", f"--scenario={scenario}") as program:
        assert deliver(program, "nobody@example.com", "BDAT")[-2:] == ["250", "554"]
        assert deliver(program, "nobody@example.com", "DATA")[-1] == "554"
        assert deliver(program, "later@example.com", "BDAT")[-2:] == ["451", "503"]
        assert deliver(program, "later@example.com", "BDAT")[-2:] == ["250", "250"]
        wait_for(lambda: program.snapshot().histograms["message_bytes"].count == 3, "the sizes")
        snapshot = program.snapshot()
        assert dict(snapshot.messages) == {"accepted": 1, "deferred": 0, "rejected": 2}
        assert snapshot.replies["BDAT", 250] == 2
        assert snapshot.replies["BDAT", 451] == 1
        assert snapshot.violations["retried-5xx"] == 1
        assert snapshot.outcomes["retried_after_4xx"] == 1
        text = len(b"Message-ID: <1@client.example.com>\r\nSubject: a test\r\n\r\nHello\r\nabc")
        assert snapshot.histograms["message_bytes"].sum == 2 * text + text + 2


def test_rules_for_bdat_see_the_message_that_is_under_way() -> None:
    rules = parse_rules(
        '[[rule]]\nphase = "BDAT"\nsender = "ann@*"\nrecipient = "bob@*"\nreply = "452 4.3.1 Enough"', "here"
    )
    session = make_engine(rules).session()
    session.greet()
    for sender, codes in ((b"ann", b"250 250 452"), (b"eve", b"250 250 250")):
        out = session.receive(b"MAIL FROM:<%b@a.test>\r\nRCPT TO:<bob@b.test>\r\nBDAT 1\r\nx" % sender)
        assert b" ".join(line[:3] for line in out.splitlines()) == codes
        session.receive(b"RSET\r\n")


@pytest.mark.skipif(not EXIM.exists(), reason=f"{EXIM} (Debian package exim4-daemon-light) is not unpacked")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run Exim with a configuration of its own")
@pytest.mark.parametrize("options", [(), ("--strict",)], ids=["lenient", "strict"])
def test_exim_sends_its_message_in_one_chunk(postfix_folder: Path, options: tuple[str, ...]) -> None:
    """`postfix_folder` is one that users other than root can reach."""
    senders = pytest.importorskip("tests.senders")
    (exim,) = (one for one in senders.SENDERS if one.name.lower() == "exim")
    with Program("--workers=1", "--debug", *options) as program:
        exim.send(
            senders.Delivery(program.port, ("bob@example.com",), False, "", postfix_folder, EXIM.parents[2])
        )
        assert dict(program.snapshot().messages) == {"accepted": 1, "deferred": 0, "rejected": 0}
        assert not any(program.snapshot().violations.values())
        assert " LAST" in program.output()
