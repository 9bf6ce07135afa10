"""The dashboard's page in a real browser: it shows the counters, and contacts no other host."""

from __future__ import annotations

import json
import smtplib
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.external_programs import output_of, path_of, requires
from tests.http_api import SPECIAL_ACCESS, DashboardAccess, Sink, ask, figures, post, reached, send, url
from tests.postfix import smtp_source
from tests.program import free_port, wait_for

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

pytestmark = requires("chromium", "chromedriver")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
"""Without a screen and as root; the rest keeps it from asking for updates."""

WIDE, PHONE = (1280, 1250), (390, 844)


class Browser:
    """Chromium, with a record of its requests and its console."""

    def __init__(self, profile: str) -> None:
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = path_of("chromium")
        options.accept_insecure_certs = True  # to let it trust an authority needs another program
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(path_of("chromedriver")))

    def open(self, sink: Sink, size: tuple[int, int] = WIDE, dark: bool = False) -> None:
        """Open the page and wait until it is live."""
        width, height = size
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.driver.get(url(sink.http))
        self.live()

    def live(self) -> None:
        wait_for(lambda: self.text("state").startswith("live"), "the page is live")

    def command(self, name: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def text(self, id: str) -> str:
        return str(self.run("return document.getElementById(arguments[0]).innerText", id))

    def value(self, id: str) -> str:
        """Return the text of a form's field."""
        return str(self.run("return document.getElementById(arguments[0]).value", id))

    def is_hidden(self, id: str) -> bool:
        return bool(self.run("return document.getElementById(arguments[0]).hidden", id))

    def focus(self, id: str) -> None:
        self.run("document.getElementById(arguments[0]).focus()", id)

    def number(self, id: str) -> float:
        """Return the value of one of the large figures."""
        return float(self.run("return document.getElementById(arguments[0]).value", id) or "nan")

    def table(self, id: str) -> list[list[str]]:
        script = (
            "return [...document.getElementById(arguments[0]).tBodies[0].rows]"
            ".map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        )
        return list(self.run(script, id))

    def press(self, *keys: str) -> None:
        """Press keys on the element that has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def console_messages(self) -> list[str]:
        """Return the messages in the console: script errors, policy violations, missing files."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requested_hosts(self) -> set[str]:
        """Return every host that a request was sent to."""
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        urls = (
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        )
        return {urlsplit(url).netloc for url in urls if not url.startswith(("data:", "chrome:"))}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            yield browser
        finally:
            browser.driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """Check afterwards that the console is empty and that no other host was contacted."""
    chromium.console_messages()
    chromium.requested_hosts()
    yield chromium
    hosts, messages = chromium.requested_hosts(), chromium.console_messages()
    chromium.driver.get("about:blank")
    assert all(host.startswith("localhost:") for host in hosts)
    assert messages == []


def sending(port: int, messages: int) -> subprocess.Popen[bytes]:
    """Start smtp-source."""
    return subprocess.Popen(smtp_source(("127.0.0.1", port), messages, "-l", "2000", connections=4))


@requires("smtp-source")
def test_the_page_shows_the_counters(browser: Browser) -> None:
    with Sink() as sink:
        sink.dashboard()
        browser.open(sink)
        assert browser.number("messages") == 0
        with sending(sink.port, 2000) as sender:
            wait_for(lambda: browser.number("rate") > 0, "a rate is shown")
            seen: list[float] = []
            while sender.poll() is None:
                seen.append(browser.number("messages"))
        assert seen == sorted(seen)
        assert sender.returncode == 0
        wait_for(lambda: browser.number("messages") == 2000, "all are shown")
        wait_for(lambda: browser.number("rate") == 0 and browser.number("open") == 0, "it is quiet again")
        now = figures(sink.http)
        assert now["messages"]["accepted"] == 2000
        assert browser.text("messages") == "2,000"
        assert browser.number("received") == now["received_bytes"]
        assert f"peak {now['rates']['messages']['peak']:,}" in browser.text("rate-details").replace("\n", " ")
        shown = {}
        for phase, code, _, count in browser.table("replies"):
            shown[phase.split(" ")[0], code] = int(count.replace(",", ""))
        counted = {(phase, code): n for phase, codes in now["replies"].items() for code, n in codes.items()}
        assert shown == counted
        assert [row[0] for row in browser.table("workers")] == ["1", "2"]
        assert browser.text("listeners") == f"127.0.0.1:{sink.port} accept"
        assert browser.driver.title.endswith("/s - Blackhole")


def test_the_page_shows_clients_and_domains_only_where_asked_to(browser: Browser) -> None:
    hidden = "return document.querySelectorAll('#clients-section[hidden], #domains-section[hidden]').length"
    with Sink("--show_clients", "--show_domains") as sink:
        sink.dashboard()
        browser.open(sink)
        assert browser.text("domains-empty") == "No recipients yet."
        assert browser.text("clients-empty") == "No clients yet."
        send(sink.port, 3)
        wait_for(lambda: browser.table("clients")[:1], "a client is shown")
        ((address, _, messages, *_),) = browser.table("clients")
        assert (address, messages) == ("127.0.0.1", "3")
        assert not browser.run(hidden)
        wait_for(lambda: [row[1] for row in browser.table("domains")] == ["6"], "recipients are shown")
        post(sink.http, "/next", {"phase": "RCPT", "reply": "450 4.2.1 Later"})
        post(sink.http, "/next", {"phase": "RCPT", "reply": "550 5.1.1 No", "recipient": "nobody@*"})
        with smtplib.SMTP("127.0.0.1", sink.port) as client:
            for recipient in ("bob@b.test", "bob@b.test", "nobody@b.test"):
                with suppress(smtplib.SMTPRecipientsRefused):
                    client.sendmail("a@example.com", [recipient], "x\r\n")
        wait_for(lambda: len(browser.table("domains")) == 2, "another domain is shown")
        name, *outcomes, rate, half, nearly_all = browser.table("domains")[1]
        assert (name, outcomes) == ("b.test", ["1", "1", "1"])
        assert rate.isdecimal() and half.endswith(" s") and nearly_all == half
        browser.driver.get("about:blank")  # or the console has an error when the server stops
    with Sink() as sink:
        sink.dashboard()
        browser.open(sink)
        assert browser.run(hidden) == 2


def test_a_run_can_be_started_stopped_and_saved_by_keyboard(browser: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    with Sink() as sink, TemporaryDirectory() as folder:
        sink.dashboard()
        browser.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=folder)
        browser.open(sink)
        browser.run("document.getElementById('run-name').focus()")
        browser.press("nightly-7", Keys.TAB)
        assert browser.run("return document.activeElement.innerText") == "Start a run"
        browser.press(Keys.ENTER)
        wait_for(lambda: "nightly-7" in str(browser.table("runs")), "the run is shown")
        send(sink.port, 12)
        wait_for(lambda: browser.table("runs")[0][2] == "12", "its messages are shown")
        browser.press(Keys.TAB)
        assert browser.run("return document.activeElement.ariaLabel") == "Stop the run nightly-7"
        browser.press(Keys.ENTER)
        wait_for(lambda: ask(sink.http, "/runs/nightly-7").json["running"] is False, "the run was stopped")
        wait_for(lambda: "running" not in browser.table("runs")[0][0], "the page shows it as stopped")
        browser.run("document.querySelector('#runs a').focus()")
        browser.press(Keys.ENTER)
        file = Path(folder, "nightly-7.json")
        wait_for(lambda: file.exists() and file.read_text(), "the report was saved")
        assert json.loads(file.read_text())["messages"]["accepted"] == 12
        browser.run("document.getElementById('run-name').focus()")
        browser.press("nightly-7", Keys.ENTER)
        wait_for(lambda: "already" in browser.text("run-message"), "the error for a second run of that name")
        browser.console_messages()  # the browser logs the status 409


def test_the_time_span_can_be_chosen_by_keyboard(browser: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    with Sink() as sink:
        sink.dashboard()
        browser.open(sink)
        browser.run("document.querySelector('#time-span input').focus()")
        browser.press(Keys.ARROW_RIGHT)
        assert browser.run("return document.querySelector('#time-span input:checked').value") == "3600"
        browser.press(Keys.ARROW_RIGHT)
        width = browser.run("const {min, max} = charts.messages.scales.x; return max - min")
        assert width == pytest.approx(86400)


def test_the_page_shows_violations_with_their_section_of_the_rfc(browser: Browser) -> None:
    with Sink() as sink:
        sink.dashboard()
        with smtplib.SMTP("127.0.0.1", sink.port) as client:
            client.ehlo("a.example.com")
            client.docmd("MAIL FROM:<a@example.com>")
            client.docmd("RCPT TO:<b@example.com>")
            client.docmd("DATA")
            client.send(b"a bare\nline feed\r\n.\r\n")
            client.getreply()
        browser.open(sink)
        source, what, count = wait_for(lambda: browser.table("violations"), "it is shown")[0]
        assert (source, what.partition("\n")[0], count) == (
            "5321, 2.3.8",
            "MUST ended a line with LF alone",
            "1 of 1",
        )
        assert "in 1 of 1 message, all inspected, in 1 connection, first " in what
        assert "x bare" not in what, "the evidence is folded"
        browser.run("document.querySelector('#violations summary').click()")
        what = browser.table("violations")[0][1]
        assert "message after “354 " in what
        assert "x xxxx\\n" in what, "the line is masked, and its end can be seen"


def test_the_scenario_can_be_switched_by_keyboard(browser: Browser, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    path = tmp_path / "friday.toml"
    path.write_text('[[rule]]\nphase = "RCPT"\nreply = "450 4.2.1 <b>Friday</b>"\n')
    with Sink(f"--scenario={path}") as sink:
        sink.dashboard()
        browser.open(sink)
        assert browser.text("scenario-current").startswith("friday.toml 1 rule for ")
        assert browser.text("listeners").endswith(" accept\nscenario friday.toml")
        assert browser.run("return document.getElementById('scenario-name').value") == "loaded"
        browser.run("document.getElementById('scenario-name').focus()")
        browser.press("profile:gr")
        about = browser.text("scenario-about")
        assert about.startswith("profile:greylist: A greylisting host")
        browser.press(Keys.TAB)
        assert browser.run("return document.activeElement.innerText") == "Switch"
        browser.press(Keys.ENTER)
        current = "scenario-current"
        wait_for(lambda: browser.text(current).startswith("profile:greylist 2 rules for "), "switched")
        assert browser.text(current).endswith("set over HTTP")
        assert browser.text("scenario-about") == about.removeprefix("profile:greylist: ")
        assert ask(sink.http, "/scenario").json["name"] == "profile:greylist"
        browser.press(Keys.TAB)
        focused = browser.run("return document.activeElement.id")
        assert focused == "matches-section", "which may have to be scrolled"
        browser.press(Keys.TAB)
        assert browser.run("return document.activeElement.innerText") == "Edit the rules"
        browser.press(Keys.ENTER)
        wait_for(lambda: 'name = "bounces"' in browser.value("editor-text"), "its rules are shown")
        ask(sink.http, "/scenario", "DELETE")
        wait_for(lambda: "<b>Friday</b>" in browser.value("editor-text"), "the configured rules are shown")
        assert browser.run("return document.getElementById('scenario-name').value") == "loaded"


def test_the_page_shows_how_often_each_rule_matched(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "friday.toml"
    rules = [("constructor", "c"), ("__proto__", "p"), ("", "n")]
    path.write_text(
        "".join(
            f'[[rule]]\nphase = "RCPT"\nrecipient = "{who}@*"\nreply = "450 4.2.1 No"\n'
            + (f'name = "{name}"\n' if name else "")
            for name, who in rules
        )
    )
    with Sink(f"--scenario={path}") as sink:
        sink.dashboard()
        browser.open(sink)
        shown = [["constructor", "", "never"], ["__proto__", "", "never"], ["rule 3", "", "never"]]
        matches = lambda: [row[:3] for row in browser.table("matches")]  # noqa: E731
        wait_for(lambda: matches() == shown, "no rule has matched")
        assert browser.text("matches-title") == "Rule matches: 3 of 3 rules never matched"
        with smtplib.SMTP("127.0.0.1", sink.port) as client:
            refused = client.sendmail("a@example.com", [f"{who}@example.com" for who in "cnnb"], "x\r\n")
            assert len(refused) == 2
        shown = [["constructor", "", "1"], ["__proto__", "", "never"], ["rule 3", "", "2"]]
        wait_for(lambda: matches() == shown, "two rules have matched")
        assert browser.run(LIMIT_COLUMNS) == 0
        assert browser.text("matches-title") == "Rule matches: 1 of 3 rules never matched"
        marked = "return [...document.querySelectorAll('#matches .never th')].map((one) => one.innerText)"
        assert browser.run(marked) == ["__proto__"]
        post(sink.http, "/scenario", {"name": "profile:greylist"})
        wait_for(lambda: matches()[-2:] == [shown[2], shown[0]], "they come last")
        assert len(matches()) == 4


LIMIT_COLUMNS = """
return [...document.querySelectorAll("#matches thead .of-limit")].filter((one) => one.offsetParent).length
"""


def test_the_page_shows_the_limits_of_rules_and_what_they_decided(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(
        '[[rule]]\nname = "constructor"\nphase = "MAIL"\nreply = "450 4.7.1 Slow down"\n'
        'throttle = { messages = 2, per = "1h" }\n'
        '[[rule]]\nname = "full"\nphase = "RCPT"\nrecipient = "full@*"\nreply = "452 4.2.2 Full"\n'
    )
    with Sink(f"--scenario={path}") as sink:
        sink.dashboard()
        browser.open(sink)
        limit = "2 messages in 3600 s by client"
        shown = [["constructor", "", "never", limit, "0", "0"], ["full", "", "never", "", "", ""]]
        wait_for(lambda: browser.table("matches") == shown, "the limit is shown")
        assert browser.run(LIMIT_COLUMNS) == 3
        with smtplib.SMTP("127.0.0.1", sink.port) as client:
            codes = [client.mail("a@example.com")[0] for _ in range(5) if client.rset()]
            assert codes == [250] * 2 + [450] * 3
        shown[0] = ["constructor", "", "3", limit, "2", "3"]
        wait_for(lambda: browser.table("matches") == shown, "its decisions are counted")
        for size in (WIDE, PHONE):
            browser.open(sink, size)
            wait_for(lambda: browser.table("matches") == shown, "the limit is shown")
            assert browser.run("return document.documentElement.scrollWidth") <= size[0]


MISTAKE = """
const mark = document.getElementById("editor-mark").getBoundingClientRect();
const numbers = [...document.querySelectorAll("#editor-numbers .mistake")];
const text = document.getElementById("editor-text");
const { top, bottom } = document.getElementById("editor").getBoundingClientRect();
return {
    lines: numbers.map((one) => one.innerText.trim()),
    beside: Math.abs(numbers[0].getBoundingClientRect().top - mark.top),
    visible: mark.top >= top && mark.bottom <= bottom,
    selected: text.value.slice(text.selectionStart, text.selectionEnd),
    invalid: text.ariaInvalid,
};
"""
"""Return how the editor shows a mistake."""


def test_a_scenario_is_edited_checked_and_applied_by_keyboard(browser: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    with Sink() as sink:
        sink.dashboard()
        browser.open(sink)
        browser.run("document.querySelector('#editor-section summary').focus()")
        browser.press(Keys.ENTER)
        browser.press(Keys.TAB)
        assert browser.run("return document.activeElement.id") == "editor-text"
        wait_for(lambda: browser.run("return editor.of"), "the scenario in force is loaded")
        filler = "# a comment\n" * 40
        browser.run("document.getElementById('editor-text').value = arguments[0]", filler)
        browser.press(Keys.CONTROL, Keys.END, Keys.NULL)
        browser.press('[[rule]]\nphase = "RCPT"\nreplay = "451 4.3.0 Edited"\n')
        browser.press(Keys.TAB, Keys.TAB)
        assert browser.run("return document.activeElement.innerText") == "Check"
        browser.press(Keys.ENTER)
        wait_for(lambda: browser.text("editor-message"), "the check has ended")
        assert browser.text("editor-message").startswith(
            'Line 43: rule 1: unknown key "replay" (did you mean'
        )
        shown = browser.run(MISTAKE)
        assert shown.pop("beside") < 5
        assert shown == {
            "lines": ["43"], "visible": True, "selected": 'replay = "451 4.3.0 Edited"', "invalid": "true",
        }  # fmt: skip
        assert ask(sink.http, "/scenario").json["ordered"] is False
        assert browser.run("return document.activeElement.id") == "editor-text"
        browser.press('reply = "451 4.3.0 Edited"')
        assert browser.text("editor-message") == ""
        assert browser.is_hidden("editor-mark")
        browser.press(Keys.TAB)
        assert browser.run("return document.activeElement.innerText") == "Apply"
        browser.press(Keys.ENTER)
        wait_for(lambda: browser.text("editor-message") == "In force: 1 rule.", "it is applied")
        assert 'reply = "451 4.3.0 Edited"' in ask(sink.http, "/scenario").json["text"]
        with smtplib.SMTP("127.0.0.1", sink.port) as client:
            client.helo("client.example.com")
            client.mail("a@example.com")
            assert client.rcpt("b@example.com") == (451, b"4.3.0 Edited")
        browser.console_messages()  # the browser logs the status 400


def test_the_editor_keeps_what_was_typed_when_another_scenario_comes_into_force(browser: Browser) -> None:
    with Sink() as sink:
        sink.dashboard()
        browser.open(sink)
        browser.run("document.querySelector('#editor-section').open = true")
        wait_for(lambda: browser.run("return editor.of"), "the scenario in force is loaded")
        browser.focus("editor-text")
        browser.press("# mine")
        post(sink.http, "/scenario", {"name": "profile:greylist"})
        wait_for(lambda: browser.text("editor-message").startswith("Another scenario is in force"), "a note")
        assert browser.value("editor-text") == "# mine"
        browser.run("document.getElementById('editor-reload').click()")
        wait_for(lambda: 'name = "bounces"' in browser.value("editor-text"), "it is loaded")
        assert browser.text("editor-message") == ""


def test_a_file_is_opened_in_the_editor(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "monday.toml"
    path.write_bytes(b'[[rule]]\r\nphase = "MAIL"\r\nreply = "451 4.3.0 Monday"\r\n')
    with Sink() as sink:
        sink.dashboard()
        browser.open(sink)
        browser.run("document.querySelector('#editor-section').open = true")
        browser.driver.find_element("css selector", "#editor-open input").send_keys(str(path))
        wait_for(lambda: "Monday" in browser.value("editor-text"), "it is shown")
        assert browser.text("editor-message") == "monday.toml is not in force yet."


def test_next_replies_are_ordered_by_keyboard(browser: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    with Sink() as sink:
        sink.dashboard()
        browser.open(sink)
        browser.focus("one-shot-count")
        browser.press(Keys.CONTROL, "a", Keys.NULL)
        browser.press("2", Keys.TAB)
        assert browser.value("one-shot-phase") == "RCPT"
        browser.press(Keys.TAB, "777 No", Keys.ENTER)
        wait_for(lambda: "reply" in browser.text("one-shot-message"), "the server's error is shown")
        browser.console_messages()  # the browser logs the status 400
        browser.press(Keys.CONTROL, "a", Keys.NULL)
        browser.press("452 4.2.2 Full", Keys.TAB, "full@*", Keys.ENTER)
        row = ["RCPT", "452 4.2.2 Full, recipient full@*", "2 of 2"]
        wait_for(lambda: browser.table("one-shot-rules") == [row], "it is shown")
        assert browser.text("one-shot-message") == ""
        assert ask(sink.http, "/next").json[0]["left"] == 2


@pytest.mark.parametrize(
    ("listen", "told"),
    [
        ("127.0.0.1:{}", "swaks --server 127.0.0.1 --port {}"),
        ("0.0.0.0:{}", "swaks --server localhost --port {}"),
        ("[::]:{}", "swaks -6 --server ::1 --port {}"),
    ],
)
@requires("swaks")
def test_until_a_message_comes_the_page_shows_a_command_that_sends_one(
    browser: Browser, listen: str, told: str
) -> None:
    port = free_port()
    with Sink(f"--listen={listen.format(port)}") as sink:
        sink.dashboard()
        browser.open(sink)
        command = wait_for(lambda: browser.text("hint-commands"), "a command is shown").split("\n")[0]
        assert command == f"{told.format(port)} --to anyone@example.com"
        if "-6" in command:  # for which swaks needs a module that is seldom installed
            with smtplib.SMTP("::1", port) as client:
                client.sendmail("a@example.com", ["anyone@example.com"], "x\r\n")
        else:
            program, *arguments = command.split()
            output_of(path_of(program), *arguments)
        wait_for(lambda: browser.is_hidden("hint"), "the command is gone")
        assert browser.number("messages") == 1


KNOWN = "return samples.seconds.accepted.filter((one) => one !== null).length"


def test_the_page_charts_outcomes_and_octets(browser: Browser) -> None:
    def charted(name: str) -> float:
        script = "return samples.seconds[arguments[0]].reduce((sum, one) => sum + (one || 0), 0)"
        return float(browser.run(script, name))

    with Sink() as sink:
        sink.dashboard()
        browser.open(sink)
        wait_for(lambda: browser.run(f"{KNOWN} > 1"), "a second is measured: the first takes longer")
        post(sink.http, "/next", {"count": 3, "phase": ".", "reply": "451 4.3.0 Later"})
        post(sink.http, "/next", {"count": 2, "phase": ".", "reply": "554 5.7.1 No"})
        with smtplib.SMTP("127.0.0.1", sink.port) as client:
            for _ in range(9):
                with suppress(smtplib.SMTPDataError):
                    client.sendmail("a@example.com", ["b@example.com"], "x\r\n")
        expected = {"accepted": 4, "deferred": 3, "rejected": 2}
        wait_for(lambda: {name: round(charted(name)) for name in expected} == expected, "they are charted")
        highest = "return charts.messages.data.slice(1).map((sums) => Math.max(...sums))"
        total, without_rejected, accepted = browser.run(highest)
        assert total > without_rejected > accepted > 0
        received = figures(sink.http)["received_bytes"]
        wait_for(lambda: charted("received_bytes") == pytest.approx(received, rel=0.1), "octets too")
        browser.open(sink)
        wait_for(lambda: {name: round(charted(name)) for name in expected} == expected, "also of a new page")
        assert browser.run("return charts.received.data[1].length") == 300


def test_the_page_shows_no_rule_matches_without_rules(browser: Browser) -> None:
    with Sink() as sink:
        sink.dashboard()
        browser.open(sink)
        assert browser.run("return document.getElementById('matches-section').hidden")


def test_the_page_shows_and_removes_one_shot_rules(browser: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    with Sink() as sink:
        sink.dashboard()
        browser.open(sink)
        assert browser.text("scenario-current").startswith("none no rules: each listener follows its mode")
        hidden = "return document.getElementById('one-shot-section').hidden"
        assert browser.run(hidden)
        post(sink.http, "/next", {"count": 2, "phase": "RCPT", "reply": "451 4.3.0 Next", "recipient": "c@*"})
        row = ["RCPT", "451 4.3.0 Next, recipient c@*", "2 of 2"]
        wait_for(lambda: browser.table("one-shot-rules") == [row], "it is shown")
        with smtplib.SMTP("127.0.0.1", sink.port) as client:
            client.sendmail("a@example.com", ["b@example.com", "c@example.com"], "Subject: x\r\n\r\nx\r\n")
        wait_for(lambda: browser.table("one-shot-rules") == [[*row[:2], "1 of 2"]], "one was used")
        browser.run("document.getElementById('one-shot-remove').focus()")
        browser.press(Keys.ENTER)
        wait_for(lambda: browser.run(hidden), "it is removed")
        assert ask(sink.http, "/next").json == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, (800, 900), PHONE, (320, 640)], ids=str)
def test_the_page_fits_every_screen_width(
    browser: Browser, sink: Sink, size: tuple[int, int], dark: bool
) -> None:
    browser.open(sink, size, dark)
    browser.run("document.querySelector('#editor-section').open = true")
    wait_for(lambda: "[[rule]]" in browser.value("editor-text"), "the rules are shown")
    assert browser.run("return document.documentElement.scrollWidth") <= size[0]
    assert browser.run(CLIPPED_LABELS) == []
    colour = browser.run("return getComputedStyle(document.body).backgroundColor")
    red = int(colour.removeprefix("rgb(").split(",")[0])
    assert red < 40 if dark else red > 200


def test_the_page_works_with_a_token_that_the_browser_was_told(browser: Browser, tmp_path: Path) -> None:
    token, path, port = "bm90LWEtc2VjcmV0LWF0LWFsbA", tmp_path / "token", free_port()
    path.write_text(token)
    with Sink(f"--dashboard=127.0.0.1:{port},token={path}") as sink:
        sink.http = port
        sink.dashboard()
        browser.driver.get(f"http://anyone:{token}@localhost:{port}/openapi.json")
        browser.open(sink)
        browser.requested_hosts()
        browser.console_messages()  # the browser asked for an icon of the JSON
        send(sink.port, 2)
        wait_for(lambda: browser.number("messages") == 2, "figures arrive")


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    """Start a server for which the page shows every part, with long names."""
    paths = [tmp_path_factory.mktemp("long") / f"a-scenario-of-a-long-name-{n}.toml" for n in range(12)]
    for path in paths:
        path.write_text(f'[[rule]]\nname = "{"Long" * 16}"\nphase = "MAIL"\nreply = "accept"\n')
    with Sink("--workers=8", *(f"--scenario={path}" for path in paths)) as program:
        program.dashboard()
        with suppress(smtplib.SMTPException):
            send(program.port, 5)
        post(program.http, "/scenario", {"name": "profile:blocklist"})
        post(program.http, "/next", {"count": 1000, "phase": ".", "reply": "451 4.3.0 " + "Later " * 60})
        yield program


CLIPPED_LABELS = """
return Object.values(charts).flatMap(({ ctx, axes, root, valToPos }) => {
    const [axis] = axes;
    ctx.font = axis.font[0];
    const { width } = root.querySelector("canvas");
    return axis._values.filter((text, i) => {
        const middle = valToPos(axis._splits[i], "x", true), half = ctx.measureText(text).width / 2;
        return text && (middle - half < 0 || middle + half > width);
    });
});
"""
"""Return the labels of the time axes that do not fit into their charts."""

LABELS = """
const all = "a, button, input, select, textarea, pre, [role=img], table, section";
return [...document.querySelectorAll(all)].filter((one) => {
    if (one.closest("[hidden], [aria-hidden]")) return false;
    const text = one.matches("input, select, textarea, pre, [role=img], section, table") ? "" : one.innerText;
    const ids = (one.getAttribute("aria-labelledby") || "").split(" ");
    const by = ids.map((id) => document.getElementById(id));
    const caption = one.tagName === "TABLE" && one.closest("section[aria-labelledby]");
    return !(text.trim() || one.ariaLabel || one.labels?.length || by.some((label) => label) || caption);
}).map((one) => one.outerHTML);
"""

CONTRAST = """
const light = (text) => {
    const [r, g, b] = text.match(/[0-9.]+/g).map(Number).map((c) => c / 255)
        .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (one) => {
    for (; one; one = one.parentElement) {
        const colour = getComputedStyle(one).backgroundColor;
        if (!colour.endsWith(", 0)") && colour !== "transparent") return colour;
    }
};
return [...document.querySelectorAll("main *, header *, footer *")].filter((one) =>
    one.checkVisibility() && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
).map((one) => {
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), one.outerHTML];
}).filter(([contrast]) => contrast < 4.5);
"""
"""Return all text with a contrast below 4.5 to 1 (WCAG 2.1, 1.4.3)."""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_control_has_a_label_and_all_text_has_enough_contrast(
    browser: Browser, sink: Sink, dark: bool
) -> None:
    browser.open(sink, dark=dark)
    browser.run("document.querySelector('#editor-section').open = true")
    wait_for(lambda: "[[rule]]" in browser.value("editor-text"), "the rules are shown")
    assert browser.run(LABELS) == []
    assert browser.run(CONTRAST) == []
    assert browser.run("return document.documentElement.lang") == "en"


def test_the_page_reconnects_after_it_was_left_many_times(browser: Browser, sink: Sink) -> None:
    """A browser keeps pages that were left, and opens at most six connections to a host."""
    for _ in range(8):
        browser.open(sink)
        browser.driver.get("about:blank")
    browser.driver.back()
    browser.live()
    with suppress(smtplib.SMTPException):
        send(sink.port)
    wait_for(lambda: "554" in browser.text("replies"), "it is live again")


def test_the_page_shows_an_interruption_and_reconnects(browser: Browser) -> None:
    with ExitStack() as stack:
        sink = stack.enter_context(Sink())
        sink.dashboard()
        browser.open(sink)
        stack.close()
        wait_for(
            lambda: browser.text("state") == "disconnected, reconnecting", "the page shows the interruption"
        )
        with Sink(f"--dashboard=127.0.0.1:{sink.http}") as again:
            again.http = sink.http
            again.dashboard()
            send(again.port, 3)
            wait_for(lambda: browser.number("messages") == 3, "the page shows the next server", timeout=40)
        browser.console_messages()  # of the interruption


SECURED = ("--dashboard_cert=auto", "--dashboard_path=/mail/sink")


def use_everything(browser: Browser, sink: Sink) -> None:
    """Use each kind of request that the page sends: files, events, orders and downloads."""
    from selenium.webdriver.common.keys import Keys

    browser.open(sink)
    send(sink.port, 3)
    wait_for(lambda: browser.number("messages") == 3, "an event has come")
    browser.focus("run-name")
    browser.press("nightly-1", Keys.ENTER)
    wait_for(lambda: "nightly-1" in str(browser.table("runs")), "the run is shown")
    for script in (
        "fetch('scenario').then(answer => document.title = answer.status)",
        "fetch(document.querySelector('#runs a').href).then(answer => document.title = answer.status)",
        "fetch(document.querySelector('footer a').href).then(answer => document.title = answer.status)",
    ):
        browser.run(f"document.title = ''; {script}")
        wait_for(lambda: browser.driver.title == "200", script)
    browser.run("document.getElementById('editor-section').open = true")
    rule = '[[rule]]\nphase = "RCPT"\nreply = "450 4.2.1 Later"\n'
    browser.run("document.getElementById('editor-text').value = arguments[0]", rule)
    browser.run("document.getElementById('editor-check').click()")
    wait_for(lambda: browser.text("editor-message") == "No mistakes: 1 rule.", "the scenario was checked")


def test_the_page_works_under_tls_and_below_a_path(browser: Browser) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    with Sink(*SECURED) as sink:
        sink.dashboard()
        use_everything(browser, sink)
        assert browser.driver.current_url == f"https://localhost:{sink.http}/mail/sink/"
        browser.driver.get("about:blank")


HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend site
    bind 127.0.0.1:{port}
    http-request deny deny_status 403 unless {{ path_beg /mail/sink }}
    default_backend sink
backend sink
    server sink 127.0.0.1:{dashboard} ssl verify required ca-file {authority} sni str(localhost)
"""


@requires("haproxy")
def test_the_page_works_behind_a_proxy_that_passes_its_path_on(browser: Browser, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    with Sink(*SECURED) as sink, ExitStack() as stack:
        sink.dashboard()
        authority, configuration, port = tmp_path / "ca.pem", tmp_path / "haproxy.cfg", free_port()
        authority.write_bytes(ask(sink.http, "/authority.pem").body)
        configuration.write_text(HAPROXY.format(port=port, dashboard=sink.http, authority=authority))
        command = [path_of("haproxy"), "-db", "-f", str(configuration)]
        proxy = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        stack.callback(proxy.kill)
        stack.callback(SPECIAL_ACCESS.pop, port, None)
        SPECIAL_ACCESS[port] = DashboardAccess("/mail/sink")
        wait_for(lambda: reached(port), "the proxy passes requests on")
        direct, sink.http = sink.http, port
        try:
            use_everything(browser, sink)
            browser.driver.get("about:blank")
        finally:
            sink.http = direct
