"""AUTH of senders that others wrote: Postfix with Cyrus SASL, nodemailer, and net/smtp of Go in Alertmanager.

The server refuses mail without AUTH, so a message that it accepts was authenticated.
smtplib, swaks, curl and aiosmtplib are in test_auth.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.external_programs import path_of, requires
from tests.postfix import Postfix, requires_postfix
from tests.program import Program, free_port, wait_for
from tests.senders import FOLDER

FOUND = Path(os.environ.get("BLACKHOLE_TEST_SENDERS", FOLDER))

USER, PASSWORD = "ann@example.com", "correct horse"

CYRUS_MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256")
"""Those of ours that the modules of Cyrus SASL have, which Postfix uses."""

MODULES = tuple(Path("/usr/lib").glob("*/sasl2/libscram.so*"))
"""The modules of Cyrus SASL, if they are installed."""

requires_senders = pytest.mark.skipif(
    not FOUND.is_dir(), reason="the senders are not there: make .venv/.senders"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    users = tmp_path_factory.mktemp("users") / "users"
    users.write_text(f"{USER}:{PASSWORD}\n")
    users.chmod(0o600)
    options = ("--auth_plaintext", "--auth_required", "--auth_mechanisms=all,-ANONYMOUS,-EXTERNAL")
    with Program("--workers=1", f"--auth={users}", *options) as running:
        yield running


def authenticated(program: Program) -> tuple[int, int]:
    """Return how many AUTH exchanges have succeeded, and how many have failed."""
    replies = program.snapshot().replies
    return replies.get(("AUTH", 235), 0), replies.get(("AUTH", 535), 0)


@requires_postfix
@pytest.mark.skipif(not MODULES, reason="the Debian package libsasl2-modules is not installed")
def test_postfix_authenticates_by_each_mechanism_of_cyrus_sasl(
    program: Program, postfix_folder: Path
) -> None:
    server = f"[127.0.0.1]:{program.port}"
    transports = ", ".join(f"{name.lower()}.test={name.lower()}:{server}" for name in CYRUS_MECHANISMS)
    more = (
        "smtp_sasl_auth_enable = yes\nsmtp_sasl_security_options = noanonymous\n"
        f"smtp_sasl_password_maps = inline:{{ {{ {server} = {USER}:{PASSWORD} }} }}\n"
        f"transport_maps = inline:{{ {transports} }}\n"
    )
    postfix = Postfix(postfix_folder, program.address, more=more)
    with (postfix.conf / "master.cf").open("a") as services:
        for name in CYRUS_MECHANISMS:
            services.write(
                f"{name.lower()} unix - - n - - smtp -o smtp_sasl_mechanism_filter={name.lower()}\n"
            )
    before = authenticated(program)
    with postfix:
        postfix.send("Subject: test\n\nHello\n", *(f"bob@{name.lower()}.test" for name in CYRUS_MECHANISMS))
        wait_for(lambda: len(postfix.delivery_results()) >= len(CYRUS_MECHANISMS), "Postfix has tried", 60)
        assert [one[: len("status=sent")] for one in postfix.delivery_results()] == ["status=sent"] * 4
    assert authenticated(program) == (before[0] + len(CYRUS_MECHANISMS), before[1])


NODEMAILER = """\
const mail = require("nodemailer");
const [port, user, password, ...methods] = process.argv.slice(1);
const send = async (method, secret) => {
  const auth = method === "XOAUTH2" ? {type: "OAuth2", user, accessToken: secret} : {user, pass: secret};
  const transport = mail.createTransport({host: "127.0.0.1", port: Number(port), name: "client.test",
    ignoreTLS: true, authMethod: method, auth});
  try {
    await transport.sendMail({from: "ann@example.com", to: "bob@example.com", subject: "test", text: "x"});
    console.log(method, "accepted");
  } catch (error) { console.log(method, error.code, error.responseCode); }
  transport.close();
};
(async () => { for (const method of methods) { await send(method, password); await send(method, "no"); } })();
"""


@requires_senders
@requires("node")
def test_nodemailer_authenticates_with_the_right_password_only(program: Program) -> None:
    methods = ("PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2")
    done = subprocess.run(
        [path_of("node"), "-e", NODEMAILER, str(program.port), USER, PASSWORD, *methods],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "NODE_PATH": str(FOUND / "node_modules")},
    )
    expected = [line for method in methods for line in (f"{method} accepted", f"{method} EAUTH 535")]
    assert done.stdout.splitlines() == expected, done.stdout + done.stderr


@requires_senders
@requires("prometheus", root=True)
def test_go_authenticates_with_its_best_mechanism(program: Program, tmp_path: Path) -> None:
    """Alertmanager sends with net/smtp of Go. Of what is offered it takes CRAM-MD5 if it has a secret."""
    port = free_port()
    smarthost = {"smtp_smarthost": f"127.0.0.1:{program.port}", "smtp_hello": "client.test"}
    secrets = {"smtp_auth_username": USER, "smtp_auth_password": PASSWORD, "smtp_auth_secret": PASSWORD}
    (tmp_path / "conf.yml").write_text(
        json.dumps(
            {
                "global": {**smarthost, **secrets, "smtp_from": USER, "smtp_require_tls": False},
                "route": {"receiver": "mail", "group_wait": "0s"},
                "receivers": [{"name": "mail", "email_configs": [{"to": "bob@example.com"}]}],
            }
        )
    )
    # Its templates have a fixed place.
    mounted = f'mount --bind {FOUND}/usr/share/prometheus /usr/share/prometheus && exec "$@"'
    command = [
        *("unshare", "-m", "sh", "-c", mounted, "sh", f"{FOUND}/usr/bin/prometheus-alertmanager"),
        *(f"--config.file={tmp_path}/conf.yml", f"--storage.path={tmp_path}", "--cluster.listen-address="),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    before = authenticated(program)
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            alert = urllib.request.Request(
                f"http://127.0.0.1:{port}/api/v2/alerts",
                json.dumps([{"labels": {"alertname": "test"}}]).encode(),
                {"Content-Type": "application/json"},
            )
            wait_for(lambda: is_taken(alert), "Alertmanager takes an alert", 60)
            wait_for(lambda: authenticated(program)[0] > before[0], "Alertmanager has authenticated", 60)
        finally:
            process.terminate()
    assert authenticated(program)[1] == before[1]


def is_taken(request: urllib.request.Request) -> bool:
    """Send a request; return whether it was answered."""
    try:
        urllib.request.urlopen(request, timeout=20).close()
    except OSError:
        return False
    return True
