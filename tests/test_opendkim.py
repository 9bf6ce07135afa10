"""Mail of Postfix that OpenDKIM signs: nothing to accuse, unless it is changed behind the signature."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blackhole.smtp.violations import IN_SIGNATURES
from tests.external_programs import path_of, requires
from tests.postfix import RECIPIENT, SENDER, Postfix, requires_postfix
from tests.program import Program, free_port, wait_for
from tests.test_dkim import rsa_keys
from tests.violation_checks import reported_violations

SIGNER_CONF = """\
Socket inet:{port}@127.0.0.1
Domain client.test
Selector s
KeyFile {key}
Mode s
Canonicalization {forms}
SignHeaders *,+list-unsubscribe,+list-unsubscribe-post
RequireSafeKeys no
Syslog no
UserID root
"""

CHANGES = {
    "smtp_header_checks": r"/^Subject: (.*change the subject.*)/ REPLACE Subject: [list] ${1}",
    "smtp_body_checks": r"/^change the body/ REPLACE changed",
}
"""What Postfix changes in a message on its way out, behind OpenDKIM."""

UNSUBSCRIBE = (
    "List-Unsubscribe: <https://client.test/unsubscribe/1>\n"
    "List-Unsubscribe-Post: List-Unsubscribe=One-Click\n"
)

HEADER = f"From: Ann <{SENDER}>\nTo: Bob <{RECIPIENT}>\n{UNSUBSCRIBE}"

MULTIPART = """\
MIME-Version: 1.0
Content-Type: multipart/alternative; boundary="b"
Subject: parts

--b
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

Gr\xfc\xdfe
--b
Content-Type: text/html; charset=us-ascii

<p>Hello</p>
--b--
"""

MESSAGES = (
    "Subject: plain\n\nHello\n",
    "Subject: dots\n\n.\n..\n.x\n\n\n",
    "Subject: blanks  and a long\n\tline \n\na  b \t\n \n\tc\n\n",
    "Subject: large\n\n" + "0123456789 \n" * 10000,
    "Subject: empty\n\n",
    MULTIPART,
)


@contextmanager
def signer(folder: Path, private: bytes, forms: str) -> Iterator[int]:
    """Run OpenDKIM; yield the port on which it waits for Postfix."""
    port, key, conf = free_port(), folder / "dkim.key", folder / "opendkim.conf"
    key.write_bytes(private)
    key.chmod(0o600)
    conf.write_text(SIGNER_CONF.format(port=port, key=key, forms=forms))
    process = subprocess.Popen([path_of("opendkim"), "-f", "-x", str(conf)], stdin=subprocess.DEVNULL)

    def listens() -> bool:
        assert process.poll() is None, "opendkim has ended"
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 5):
            return True
        return False

    try:
        wait_for(listens, "opendkim listens")
        yield port
    finally:
        process.kill()
        process.wait()


@requires("opendkim")
@requires_postfix
def test_mail_that_opendkim_has_signed_has_no_fault_unless_it_was_changed_later(
    tmp_path: Path, postfix_folder: Path
) -> None:
    keys, file, pid = rsa_keys(2048), tmp_path / "keys", tmp_path / "pid"
    file.write_bytes(b"s._domainkey.client.test " + keys.record + b"\n")
    more = "smtp_connection_cache_on_demand = no\nmilter_default_action = tempfail\n"
    for name, rule in CHANGES.items():
        (postfix_folder / name).write_text(f"{rule}\n")
        more += f"{name} = regexp:{postfix_folder / name}\n"
    options = "--workers=1", "--inspect=all", "--inspect-content", f"--dkim-keys={file}", "--hostname=mx.test"
    with (
        signer(postfix_folder, keys.private, "relaxed/simple") as port,
        Program(f"--pid={pid}", *options) as program,
        Postfix(
            postfix_folder, program.address, more=f"{more}non_smtpd_milters = inet:127.0.0.1:{port}\n"
        ) as postfix,
    ):

        def send(text: str, delivered: int) -> list[str]:
            """Send a message; once so many are delivered and verified, return what was found."""
            postfix.send(HEADER + text, RECIPIENT)
            wait_for(lambda: postfix.has_delivered(delivered), "Postfix has delivered the message", 60)
            assert program.snapshot().inspected[IN_SIGNATURES].inspected == delivered
            return reported_violations(program, pid)

        for text in MESSAGES[:-1]:
            postfix.send(HEADER + text, RECIPIENT)
        sent = len(MESSAGES)
        assert send(MESSAGES[-1], sent) == []
        assert send("Subject: x\n\nchange the body\n", sent + 1) == ["bad-body-hash"]
        assert send("Subject: change the subject\n\nx\n", sent + 2) == ["bad-body-hash", "bad-signature"]
        assert program.stop() == 0
