"""Postfix as a client: a whole one with its own queue, which relays to one server, and its smtp-source.

    with Program() as program, Postfix(folder, program.address) as postfix:
        postfix.send("Subject: test\n\nHello\n", "bob@example.com")
        wait_for(lambda: postfix.has_delivered(1), "Postfix has delivered the message", 60)

Mark tests that use it with `requires_postfix`, and give them the fixture `postfix_folder`.
"""

from __future__ import annotations

import os
import pwd
import re
from contextlib import suppress
from pathlib import Path

from tests.external_programs import output_of, path_of, requires

SENDER = "ann@client.test"
RECIPIENT = "bob@example.com"

MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/mail.log
maillog_file_prefixes = {folder}
myhostname = client.test
mydestination =
alias_maps =
alias_database =
inet_interfaces = loopback-only
inet_protocols = ipv4
disable_dns_lookups = yes
relayhost = [{host}]:{port}
smtp_tls_security_level = {tls}
smtp_tls_CAfile = {ca}
smtp_tls_secure_cert_match = mx.test
smtp_tls_loglevel = 1
smtp_destination_concurrency_limit = 5
"""

MASTER_CF = """\
pickup    unix  n  -  n  1  1  pickup
cleanup   unix  n  -  n  -  0  cleanup
qmgr      unix  n  -  n  1  1  qmgr
rewrite   unix  -  -  n  -  -  trivial-rewrite
bounce    unix  -  -  n  -  0  bounce
defer     unix  -  -  n  -  0  bounce
trace     unix  -  -  n  -  0  bounce
flush     unix  n  -  n  -  0  flush
proxymap  unix  -  -  n  -  -  proxymap
smtp      unix  -  -  n  -  -  smtp
lmtp      unix  -  -  n  -  -  lmtp
showq     unix  n  -  n  -  -  showq
error     unix  -  -  n  -  -  error
retry     unix  -  -  n  -  -  error
scache    unix  -  -  n  -  1  scache
tlsmgr    unix  -  -  n  -  1  tlsmgr
postlog   unix-dgram  n  -  n  -  1  postlogd
"""
"""Only services that send mail: no listener, and nothing shared with a Postfix of the machine."""

QUICK_RETRIES = """\
minimal_backoff_time = 1s
maximal_backoff_time = 2s
queue_run_delay = 1s
smtp_connection_cache_on_demand = no
"""
"""Lines for main.cf: retry after seconds instead of minutes."""

requires_postfix = requires("postfix", "sendmail", "postqueue", root=True)
"""Skips a test where it cannot start Postfix."""


def smtp_source(address: tuple[str, int], messages: int, *options: str, connections: int = 20) -> list[str]:
    """Return the command with which Postfix's smtp-source sends messages as fast as it can.

    It uses this many connections at a time, a new one for each message unless the options have `-d`. Its
    exit status is 0 if all messages were accepted.
    """
    target = f"{address[0]}:{address[1]}"
    return [path_of("smtp-source"), *options, "-s", str(connections), "-m", str(messages), target]


class Postfix:
    """A Postfix that runs inside `with`.

    `address` is its relayhost, `tls` its smtp_tls_security_level, `ca` the file with the certificate
    authority that it trusts, and `more` lines for main.cf. The user postfix must be able to reach `folder`.
    `before` comes before each command, to run it on another machine.
    """

    def __init__(
        self,
        folder: Path,
        address: tuple[str, int],
        tls: str = "none",
        ca: str = "",
        more: str = "",
        before: tuple[str, ...] = (),
    ) -> None:
        self.before = before
        self.postfix = path_of("postfix")
        self.conf = folder / "conf"
        self.log = folder / "mail.log"
        for name in ("conf", "queue", "data"):
            (folder / name).mkdir(mode=0o755)
        owner = pwd.getpwnam("postfix")
        os.chown(folder / "data", owner.pw_uid, owner.pw_gid)
        host, port = address
        settings = MAIN_CF.format(folder=folder, host=host, port=port, tls=tls, ca=ca)
        (self.conf / "main.cf").write_text(settings + more)
        (self.conf / "master.cf").write_text(MASTER_CF)

    def __enter__(self) -> Postfix:
        output_of(*self.before, self.postfix, "-c", str(self.conf), "start")
        return self

    def __exit__(self, *_: object) -> None:
        output_of(*self.before, self.postfix, "-c", str(self.conf), "stop")

    def send(self, text: str, *recipients: str) -> None:
        """Put a message into the queue; `recipients` may begin with other options of sendmail."""
        output_of(
            *self.before,
            path_of("sendmail"),
            "-C",
            str(self.conf),
            "-i",
            "-f",
            SENDER,
            *recipients,
            text=text,
        )

    def queue(self) -> str:
        """Return the listing of the queue."""
        return output_of(*self.before, path_of("postqueue"), "-c", str(self.conf), "-p").strip()

    def has_delivered(self, count: int) -> bool:
        """Whether at least `count` recipients were delivered and the queue is empty."""
        sent = [result for result in self.delivery_results() if result.startswith("status=sent")]
        return len(sent) >= count and self.queue() == "Mail queue is empty"

    def delivery_results(self) -> list[str]:
        """Return the rest of each line of the log from `status=` on: one for each attempt and recipient."""
        with suppress(FileNotFoundError):
            return re.findall(r"status=.*", self.log.read_text("utf-8", "replace"))
        return []
