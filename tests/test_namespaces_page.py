"""Namespaces on the dashboard's page, in a real browser."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.external_programs import requires
from tests.http_api import Sink, ask, post, send
from tests.program import wait_for
from tests.test_page import CONTRAST, LABELS, PHONE, WIDE, Browser, browser, chromium

__all__ = ["browser", "chromium"]

pytestmark = requires("chromium", "chromedriver")

CHOOSE = """
const select = document.getElementById("namespace");
select.value = arguments[0];
select.dispatchEvent(new Event("change", { bubbles: true }));
"""
VISIBLE = "return document.getElementById(arguments[0]).checkVisibility()"

SLOW = """
[[rule]]
name = "slow"
phase = "MAIL"
throttle = { messages = 2, per = "1h" }
reply = "450 4.7.1 Slow down"
"""


@pytest.fixture
def sink(browser: Browser) -> Iterator[Sink]:
    with Sink("--namespace_by=tag,helo", "--recent=100", "--workers=2") as program:
        program.dashboard()
        yield program
        browser.driver.get("about:blank")  # or the console has an error when the server stops


def deliver(sink: Sink, name: str, messages: int) -> None:
    """Send messages to a namespace that HELO chooses."""
    with smtplib.SMTP("127.0.0.1", sink.port, name, timeout=30) as client:
        for number in range(messages):
            with suppress(smtplib.SMTPException):
                client.sendmail("a@example.com", [f"{name}-{number}@example.com"], "Subject: x\r\n\r\nx\r\n")


def test_the_page_lists_namespaces_and_shows_the_figures_of_one(browser: Browser, sink: Sink) -> None:
    browser.open(sink)
    wait_for(lambda: browser.run(VISIBLE, "namespaces-empty"), "there is no namespace yet")
    assert ask(sink.http, "/namespaces/job-a/scenario", "PUT", SLOW).status == 200
    assert (
        post(sink.http, "/namespaces/job-b/next", {"phase": "NOOP", "reply": "450 No", "count": 3}).status
        == 200
    )
    deliver(sink, "job-a", 5)
    deliver(sink, "other.test", 4)

    def rows() -> list[list[str]]:
        return [row[:4] for row in browser.table("namespaces")]

    listed = [["job-a", "2", "PUT /scenario", "0"], ["job-b", "0", "configured", "3"]]
    wait_for(lambda: sorted(rows()) == listed and browser.number("messages") == 6, "namespaces are listed")
    assert all(row[4].endswith("s") and row[5].endswith("s") for row in browser.table("namespaces"))

    browser.run(CHOOSE, "job-a")
    wait_for(lambda: browser.number("messages") == 2, "its messages are shown")
    assert browser.run("return location.hash") == "#namespace=job-a"
    limit = ["slow", "", "3", "2 messages in 3600 s by client", "2", "3"]
    wait_for(lambda: browser.table("matches") == [limit], "so is what its limit decided")
    wait_for(lambda: len(browser.table("recent")) == 5, "and its transactions")
    assert all("<job-a-" in row[2] or row[2].startswith("<a@example.com>") for row in browser.table("recent"))
    assert browser.text("scenario-current").startswith("PUT /scenario 1 rule")
    for section in "charts", "workers", "open":
        assert not browser.run(VISIBLE, section), section
    links = "return [...document.querySelectorAll('footer a')].map((one) => one.getAttribute('href'))"
    assert browser.run(links) == ["namespaces/job-a/stats.json", "metrics", "namespaces/job-a/report"]

    browser.run(CHOOSE, "")
    wait_for(lambda: browser.number("messages") == 6, "all messages are shown again")
    wait_for(lambda: len(browser.table("recent")) == 9, "and all transactions")
    assert browser.run(VISIBLE, "charts")
    assert browser.run(links) == ["stats.json", "metrics", "report"]


def test_orders_and_runs_are_for_the_namespace_that_is_shown(browser: Browser, sink: Sink) -> None:
    assert ask(sink.http, "/namespaces/job-a", "PUT").status == 201
    browser.open(sink)
    wait_for(lambda: browser.table("namespaces"), "it is listed")
    browser.run("document.querySelector('#namespaces a').click()")
    wait_for(lambda: not browser.run(VISIBLE, "charts"), "its figures are shown")
    browser.run("document.getElementById('one-shot-reply').value = '451 4.3.0 Later'")
    browser.run("document.querySelector('#one-shot-form button').click()")
    wait_for(lambda: browser.table("one-shot-rules") == [["RCPT", "451 4.3.0 Later", "1 of 1"]], "it waits")
    browser.run("document.getElementById('run-name').value = 'first'")
    browser.run("document.querySelector('#run-form button').click()")
    wait_for(lambda: "first" in str(browser.table("runs")), "a run of the namespace began")
    browser.run("document.querySelector('#editor-section').open = true")
    browser.run("document.getElementById('editor-text').value = arguments[0]", SLOW)
    browser.run("document.querySelector('#editor-form .primary').click()")
    wait_for(lambda: browser.text("editor-message") == "In force: 1 rule.", "its scenario is replaced")
    assert ask(sink.http, "/namespaces/job-a/scenario").json["names"] == ["slow"]
    assert ask(sink.http, "/scenario").json["names"] == []
    assert (ask(sink.http, "/next").json, ask(sink.http, "/runs").json) == ([], [])
    assert [one["name"] for one in ask(sink.http, "/namespaces/job-a/runs").json] == ["first"]
    browser.run("document.querySelector('#runs button').click()")
    path = "/namespaces/job-a/runs/first"
    wait_for(lambda: ask(sink.http, path).json["running"] is False, "the run is stopped")
    assert ask(sink.http, "/namespaces/job-a", "DELETE").status == 200
    wait_for(lambda: browser.text("namespace-message") == "The namespace job-a is gone.", "that is said")
    browser.run(CHOOSE, "")
    wait_for(lambda: browser.run("return !namespaceRequest && !namespace"), "it is not asked for any more")
    assert all("404" in message for message in browser.console_messages())


def test_the_namespaces_fit_every_screen_and_can_be_read(browser: Browser, sink: Sink) -> None:
    name = "a-name-of-a-namespace-" * 2
    for number in range(12):
        assert ask(sink.http, f"/namespaces/{name}{number}", "PUT").status == 201
    send(sink.port)
    for size, dark in ((WIDE, False), (PHONE, True)):
        browser.open(sink, size, dark)
        browser.run("document.querySelector('#editor-section').open = true")
        wait_for(lambda: len(browser.table("namespaces")) == 12, "they are shown")
        for chosen, is_all in ((f"{name}7", False), ("", True)):
            browser.run(CHOOSE, chosen)
            wait_for(lambda is_all=is_all: browser.run(VISIBLE, "charts") is is_all, "the figures change")  # type: ignore[misc]
            assert browser.run("return document.documentElement.scrollWidth") <= size[0]
            assert browser.run(LABELS) == []
            assert browser.run(CONTRAST) == []
