"""The TLS menu against senders that we did not write: a table of docs/tls.md says what each does.

It is of the versions in Debian 12; others may do better.
"""

from __future__ import annotations

import json
import platform
import smtplib
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from blackhole.tls_menu import TLS_MENU
from tests.external_programs import path_of, requires
from tests.postfix import Postfix, requires_postfix
from tests.program import ROOT, Program, free_port, run, wait_for

ENTRIES = [entry.name for entry in TLS_MENU if entry.name not in ("stall-in-handshake", "client-cert-asked")]
"""The entries that a sender can be tested with in no time."""

SENDER, RECIPIENT = "ann@client.test", "bob@example.com"


def is_debian_12() -> bool:
    with suppress(OSError):
        release = platform.freedesktop_os_release()
        return (release["ID"], release.get("VERSION_ID")) == ("debian", "12")
    return False


debian_12 = pytest.mark.skipif(not is_debian_12(), reason="the page says what senders of Debian 12 do")

SENT, REFUSED, LEFT = "mail", "refuses", "leaves"
"""What a sender does: it sends mail, ends the handshake, or leaves after it without mail."""


class TLSMenuServer(NamedTuple):
    """A server with a listener for each entry, and what its clients trust."""

    program: Program
    ports: Mapping[str, int]
    authority: Path
    mail: Path

    def results(self) -> dict[str, tuple[int, int, int]]:
        """Connections by entry: the handshake failed, no message was sent, one was."""
        menu = self.program.snapshot().tls_menu
        return {one: (menu[one]["failed"], menu[one]["left"], menu[one]["sent"]) for one in ENTRIES}


@pytest.fixture(scope="module")
def menu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TLSMenuServer]:
    folder = tmp_path_factory.mktemp("menu")
    folder.chmod(0o755)
    ports = {entry: free_port() for entry in ENTRIES}
    listeners = [f"127.0.0.1:{port},tls_menu={entry}" for entry, port in ports.items()]
    pid, authority, mail = folder / "pid", folder / "ca.pem", folder / "mail"
    mail.write_bytes(b"Subject: test\r\n\r\nHello\r\n")
    with Program("--hostname=localhost", f"--listen={' '.join(listeners)}", f"--pid={pid}") as program:
        authority.write_text(run("authority", f"--pid={pid}").stdout)
        authority.chmod(0o644)
        yield TLSMenuServer(program, ports, authority, mail)
        assert "Traceback" not in program.output()


def call(*command: str, text: bytes = b"") -> None:
    """Run a sender, which may fail."""
    subprocess.run(
        [path_of(command[0]), *command[1:]],
        input=text,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )


def openssl(menu: TLSMenuServer, port: int) -> None:
    text = f"EHLO c.test\nMAIL FROM:<{SENDER}>\nRCPT TO:<{RECIPIENT}>\nDATA\nSubject: x\n\nHello\n.\nQUIT\n"
    verify = "-verify_return_error", "-verify_hostname", "localhost", "-CAfile", str(menu.authority)
    server = "-starttls", "smtp", "-connect", f"127.0.0.1:{port}", "-servername", "localhost"
    call("openssl", "s_client", "-ign_eof", "-crlf", *server, *verify, text=text.encode())


def swaks(menu: TLSMenuServer, port: int) -> None:
    server = "--server", "localhost", "--port", str(port), "--helo", "c.test", "--timeout", "20"
    tls = "--tls", "--tls-verify", "--tls-ca-path", str(menu.authority)
    call("swaks", *server, *tls, "--from", SENDER, "--to", RECIPIENT)


def swaks_without_verify(menu: TLSMenuServer, port: int) -> None:
    server = "--server", "localhost", "--port", str(port), "--helo", "c.test", "--timeout", "20"
    call("swaks", *server, "--tls", "--from", SENDER, "--to", RECIPIENT)


def msmtp(menu: TLSMenuServer, port: int) -> None:
    server = f"--from={SENDER}", "--domain=c.test", "--host=localhost", f"--port={port}"
    tls = "--tls=on", "--tls-starttls=on", f"--tls-trust-file={menu.authority}"
    call("msmtp", *server, *tls, RECIPIENT, text=menu.mail.read_bytes())


def curl(menu: TLSMenuServer, port: int) -> None:
    mail = "--mail-from", SENDER, "--mail-rcpt", RECIPIENT, "-T", str(menu.mail)
    call(
        "curl", "-sS", "--ssl-reqd", "--cacert", str(menu.authority), *mail, f"smtp://localhost:{port}/c.test"
    )


def python(menu: TLSMenuServer, port: int) -> None:
    context = ssl.create_default_context(cafile=menu.authority)
    with suppress(OSError, smtplib.SMTPException), smtplib.SMTP("localhost", port, "c.test", 20) as client:
        client.starttls(context=context)
        client.sendmail(SENDER, RECIPIENT, menu.mail.read_bytes())


SENDERS: dict[str, Callable[[TLSMenuServer, int], None]] = {
    "openssl": openssl,
    "curl": curl,
    "msmtp": msmtp,
    "swaks --tls-verify": swaks,
    "swaks --tls": swaks_without_verify,
    "Python smtplib": python,
}


def results_of(before: tuple[int, int, int], after: tuple[int, int, int]) -> str:
    failed, left, sent = (new - old for old, new in zip(before, after, strict=True))
    return SENT if sent else LEFT if left else REFUSED if failed else ""


def settled(menu: TLSMenuServer, before: Mapping[str, tuple[int, int, int]]) -> dict[str, str]:
    """Wait until each entry had a connection that has ended, and return what was done there."""

    def look() -> dict[str, tuple[int, int, int]] | None:
        after = menu.results()
        done = all(after[one] != before[one] for one in ENTRIES) and not menu.program.snapshot().open
        return after if done else None

    after = wait_for(look, "all connections have ended", 60)
    return {one: results_of(before[one], after[one]) for one in ENTRIES}


@debian_12
@requires("openssl", "curl", "msmtp", "swaks")
@pytest.mark.parametrize("sender", SENDERS)
def test_a_sender_does_at_each_entry_what_the_page_says(sender: str, menu: TLSMenuServer) -> None:
    before = menu.results()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda port: SENDERS[sender](menu, port), menu.ports.values()))
    assert settled(menu, before) == documented()[sender]


POSTFIX_CONF = """
transport_maps = texthash:{folder}/transport
smtp_tls_policy_maps = texthash:{folder}/policy
default_process_limit = 40
"""


@debian_12
@requires_postfix
def test_postfix_does_at_each_entry_what_the_page_says(menu: TLSMenuServer, postfix_folder: Path) -> None:
    """At level `secure`, which is for the server by its name, and at level `may`, by its address."""
    hosts = {"secure": "localhost", "may": "127.0.0.1"}
    (postfix_folder / "transport").write_text(
        "".join(
            f"{entry}.{level} smtp:[{host}]:{port}\n"
            for level, host in hosts.items()
            for entry, port in menu.ports.items()
        )
    )
    (postfix_folder / "policy").write_text(
        "".join(f"[localhost]:{port} secure match=localhost\n" for port in menu.ports.values())
    )
    found = {}
    more = POSTFIX_CONF.format(folder=postfix_folder)
    with Postfix(postfix_folder, menu.program.address, "may", str(menu.authority), more) as postfix:
        for count, level in enumerate(hosts, 1):
            before = menu.results()
            postfix.send("Subject: test\n\nHello\n", *(f"bob@{entry}.{level}" for entry in ENTRIES))
            wanted = count * len(ENTRIES)
            wait_for(lambda wanted=wanted: len(postfix.delivery_results()) >= wanted, "all were tried", 60)
            found[f"Postfix, {level}"] = settled(menu, before)
    assert found == {name: results for name, results in documented().items() if name in found}


def documented() -> dict[str, dict[str, str]]:
    """What docs/tls.md says that each sender does."""
    page = (ROOT / "docs" / "tls.md").read_text("utf-8")
    table = page.partition("| entry | openssl")[2].partition("\n\n")[0]
    head, _, *rows = (line.strip("| ").split(" | ") for line in f"entry | openssl{table}".splitlines())
    found = {name: {row[0].strip("`"): row[number] for row in rows} for number, name in enumerate(head)}
    del found["entry"]
    return found


@requires("curl", "msmtp")
def test_curl_and_msmtp_log_in_with_a_certificate(menu: TLSMenuServer, tmp_path: Path) -> None:
    """By AUTH EXTERNAL: as the user that the certificate names, and as no other."""
    authority, stranger = trustme.CA(), trustme.CA()
    ca, users, pid = tmp_path / "clients.pem", tmp_path / "users", tmp_path / "pid"
    authority.cert_pem.write_to_path(str(ca))
    issued = {"ann": authority.issue_cert("ann@example.com"), "eve": authority.issue_cert("eve@example.com")}
    issued["stranger"] = stranger.issue_cert("ann@example.com")
    for name, one in issued.items():
        one.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        one.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
        (tmp_path / f"{name}.key").chmod(0o600)
    users.write_text("ann@example.com:x\n")
    users.chmod(0o600)
    options = (
        *(
            "--ssl_cert=auto",
            "--ssl_port=0",
            "--client_cert=ask",
            f"--client_ca={ca}",
            "--hostname=localhost",
        ),
        *(f"--auth={users}", "--auth_mechanisms=EXTERNAL", "--auth_required", "--recent=10", f"--pid={pid}"),
    )
    with Program(*options) as program:
        trusted = tmp_path / "ca.pem"
        trusted.write_text(run("authority", f"--pid={pid}").stdout)
        for name in issued:
            cert, key = str(tmp_path / f"{name}.pem"), str(tmp_path / f"{name}.key")
            server = "-sS", "--ssl-reqd", "--cacert", str(trusted), "--cert", cert, "--key", key
            login = "-u", "ann@example.com:", "--login-options", "AUTH=EXTERNAL"
            mail = "--mail-from", SENDER, "--mail-rcpt", RECIPIENT, "-T", str(menu.mail)
            call("curl", *server, *login, *mail, f"smtp://localhost:{program.port}/curl.{name}")
            call(
                *("msmtp", "--auth=external", "--user=ann@example.com", "--tls=on", "--host=localhost"),
                *(f"--port={program.port}", f"--tls-trust-file={trusted}", f"--domain=msmtp.{name}"),
                *(f"--tls-cert-file={cert}", f"--tls-key-file={key}", f"--from={SENDER}", RECIPIENT),
                text=menu.mail.read_bytes(),
            )
        wait_for(lambda: not program.snapshot().open, "all connections have ended")
        found = [json.loads(line) for line in run("recent", "--json", f"--pid={pid}").stdout.splitlines()]
    accepted = {one["helo"]: one["tls"] for one in found if one["outcome"] == "accepted"}
    assert accepted.keys() == {"curl.ann", "msmtp.ann"}
    for tls in accepted.values():
        assert tls.endswith(", certificate good, client_cert ask, client ann@example.com")
