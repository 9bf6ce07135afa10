"""The last transactions on the dashboard's page, in a real browser."""

from __future__ import annotations

import smtplib
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.external_programs import requires
from tests.http_api import Sink
from tests.program import wait_for
from tests.test_page import PHONE, WIDE, Browser, browser, chromium  # noqa: F401 (fixtures)

pytestmark = requires("chromium", "chromedriver")

RULES = """
[[rule]]
name = "nobody"
phase = "RCPT"
recipient = "nobody@*"
reply = "550 5.1.1 No such user"
"""

ATTACK = "<img/src=x/onerror=document.title='owned'>"


def converse(sink: Sink, *lines: bytes) -> None:
    """Send lines, each after the reply to the one before."""
    with (
        socket.create_connection(("127.0.0.1", sink.port), timeout=10) as client,
        client.makefile("rb") as replies,
    ):
        replies.readline()
        for line in lines:
            client.sendall(line)
            with suppress(ConnectionError):
                while replies.readline()[3:4] == b"-":
                    pass


def rows(browser: Browser) -> list[str]:  # noqa: F811
    return [" ".join(row) for row in browser.table("recent")]


def wait_for_rows(browser: Browser, number: int) -> list[str]:  # noqa: F811
    wait_for(lambda: len(rows(browser)) == number, f"{number} rows are shown")
    return rows(browser)


@pytest.fixture
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    scenario = tmp_path_factory.mktemp("recent") / "rules.toml"
    scenario.write_text(RULES)
    with Sink("--recent=100", f"--scenario={scenario}") as found:
        found.dashboard()
        yield found


MESSAGE = "Subject: {}\r\n\r\nHello\r\n"


def send_some(sink: Sink) -> None:
    shop, bob, nobody = "shop@example.com", "bob@example.com", "nobody@example.com"
    with smtplib.SMTP("127.0.0.1", sink.port, "app.example.com") as client:
        client.sendmail(shop, [bob, "eve@example.com"], MESSAGE.format("Welcome"))
        client.sendmail(shop, ["ann@example.com"] * 12, b"Subject: Many\r\n\r\nbare\nline\r\n")
        client.sendmail(shop, [bob, nobody], MESSAGE.format("Partly"))
        with suppress(smtplib.SMTPRecipientsRefused):
            client.sendmail(shop, [nobody], "x")


def test_transactions_are_listed_with_their_conversations(sink: Sink, browser: Browser) -> None:  # noqa: F811
    browser.open(sink)
    assert browser.text("recent-empty") == "No transaction to show yet."
    send_some(sink)
    shown = wait_for_rows(browser, 4)
    assert "rejected <shop@example.com> → <nobody@example.com>" in shown[0]
    assert "accepted <shop@example.com> → <bob@example.com>" in shown[1]
    assert "and 2 more" in shown[2]
    assert "Subject: Welcome" in shown[3]
    assert "nobody" in shown[1]
    browser.run("document.querySelectorAll('#recent th button')[1].click()")
    shown = wait_for_rows(browser, 5)
    for line in ("rcpt TO:<nobody@example.com>", "550 5.1.1 No such user", "rule nobody", "(message of "):
        assert line in shown[2]
    assert "Hello" not in shown[2]
    browser.run("document.querySelectorAll('#recent th button')[1].click()")
    wait_for_rows(browser, 4)


def test_list_is_filtered(sink: Sink, browser: Browser) -> None:  # noqa: F811
    send_some(sink)
    browser.open(sink)
    wait_for_rows(browser, 4)
    fill = (
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; "
        "e.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    browser.run(fill, "recent-text", "eve")
    wait_for_rows(browser, 1)
    browser.run(fill, "recent-text", "*@example.com")
    wait_for_rows(browser, 4)
    browser.run(fill, "recent-outcome", "rejected")
    wait_for_rows(browser, 1)
    browser.run(fill, "recent-key", "sender")
    browser.run(fill, "recent-text", "nobody")
    wait_for_rows(browser, 0)
    assert browser.text("recent-empty") == "No transaction to show yet."


def test_what_a_client_sends_is_text_on_the_page(sink: Sink, browser: Browser) -> None:  # noqa: F811
    attack = ATTACK.encode()
    converse(
        sink,
        b"EHLO " + attack + b"\r\n",
        b"MAIL FROM:<" + attack.replace(b"<", b"").replace(b">", b"") + b"@example.com>\r\n",
        b'RCPT TO:<"' + attack + b'"@example.com>\r\n',
        b"X" + attack + b"\x1b[2J\xe2\x80\xae\r\n",
        b"DATA\r\n",
        b"Subject: " + attack + b"\xe2\x80\xaetxt.exe\r\n\r\n" + attack + b"\nbare\r\n.\r\n",
        b"QUIT\r\n",
    )
    browser.open(sink)
    wait_for_rows(browser, 1)
    browser.run("document.querySelector('#recent th button').click()")
    shown = "".join(wait_for_rows(browser, 2))
    assert shown.count(ATTACK) >= 5
    assert "\\u202etxt.exe" in shown
    assert "\u202e" not in shown
    assert browser.run("return document.querySelectorAll('#recent img').length") == 0
    assert browser.run("return document.title") != "owned"


def test_page_without_recorded_transactions_has_no_list(browser: Browser) -> None:  # noqa: F811
    with Sink() as sink:
        sink.dashboard()
        browser.open(sink)
        assert browser.run("return document.getElementById('recent-section').hidden")


@pytest.mark.parametrize(("size", "dark"), [(WIDE, False), (WIDE, True), (PHONE, False)])
def test_list_fits_the_page(sink: Sink, browser: Browser, size: tuple[int, int], dark: bool) -> None:  # noqa: F811
    send_some(sink)
    converse(sink, b"EHLO x.test\r\n", b"MAIL FROM:<" + b"x" * 200 + b"@example.com>\r\n", b"RSET\r\n")
    browser.open(sink, size, dark)
    wait_for_rows(browser, 5)
    browser.run("document.querySelectorAll('#recent th button')[2].click()")
    wait_for_rows(browser, 6)
    assert browser.run("return document.documentElement.scrollWidth") <= size[0]
    box = "const box = document.getElementById('recent').parentElement;"
    assert browser.run(f"{box} return box.scrollWidth <= box.clientWidth")
