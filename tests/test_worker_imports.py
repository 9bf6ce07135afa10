"""Worker and dashboard load nothing after the fork: they may have no right to, and files may be new."""

from __future__ import annotations

import os
from pathlib import Path

from tests.http_api import Sink, ask, send
from tests.smtp_client import SMTPClient

RECORDER = """
import os
import sys


class ImportRecorder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        with open(os.environ["IMPORTS"], "a") as file:
            file.write(name + "\\n")


os.register_at_fork(after_in_child=lambda: sys.meta_path.insert(0, ImportRecorder))
"""
"""Writes down what a process imports that the program has forked."""

SCENARIO = """
seed = 1

[[rule]]
phase = "."
header = "Subject: *Ä?Ö*"
reply = "550 5.7.1 {sender}"

[[rule]]
phase = "RCPT"
recipient = "*Ü?@*"
chance = 0.9
attempt = "<= 9"
reply = "450 4.2.1 Later"
delay = { lognormal = { median = 0.001, p99 = 0.002 } }

[[rule]]
phase = "RCPT"
recipient = "g@*"
greylist = true
"""

PATHS = (
    *("/", "/stats.json?history=1", "/metrics", "/report?format=junit", "/report", "/openapi.json", "/nope"),
    *("/scenario", "/next", "/recent", "/recent?sender=%C3%BC*", "/runs", "/wait?timeout=0", "/readyz"),
)


def record_imports(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return the file in which a program lists what its children import, and the environment for that."""
    (folder / "sitecustomize.py").write_text(RECORDER)
    imports = folder / "imports"
    imports.write_text("")
    folder.chmod(0o777)
    imports.chmod(0o666)
    paths = os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))
    return imports, {"PYTHONPATH": paths, "IMPORTS": str(imports)}


def test_nothing_is_imported_after_the_fork(tmp_path: Path) -> None:
    """A glob with `?` in a header field outside ASCII has loaded a codec: a worker as nobody could not."""
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    imports, more = record_imports(tmp_path)
    options = ("--recent=10", "--log-transactions", "--show-lines", "--auth=any", "--auth-plaintext")
    with Sink(f"--scenario={tmp_path}/scenario.toml", *options, env=more) as sink:
        sink.dashboard()
        send(sink.port)
        with SMTPClient(sink.address) as client:
            client.command("EHLO client.test")
            client.command("AUTH PLAIN AMO8AHA=")
            client.command("MAIL FROM:<ü@example.com> SMTPUTF8")
            assert client.command("RCPT TO:<müx@example.com>").startswith(("250", "450"))
            client.command("RCPT TO:<b@example.com>")
            client.start_data()
            client.send("Subject: großer äxö\r\n\r\nx\r\n.\r\n".encode())
            assert client.read_reply().startswith("550 5.7.1")
            client.command("MAIL FROM:<a@example.com>")
            assert client.command("RCPT TO:<g@example.com>").startswith("450")
        for path in PATHS:
            assert ask(sink.http, path).status not in (500, 503), path
        text = SCENARIO.encode().decode("latin-1")  # as which http.client encodes it
        assert ask(sink.http, "/scenario/check", "POST", text).status == 200
        assert ask(sink.http, "/scenario", "PUT", "[[rule]]\n").status == 400
        assert ask(sink.http, "/scenario", "PUT", text).status == 200
        assert ask(sink.http, "/next", "POST", '{"phase": "RCPT", "reply": "450 x"}').status == 200
        assert ask(sink.http, "/runs", "POST", '{"name": "one"}').status == 201
        assert ask(sink.http, "/runs/one/stop", "POST").status == 200
    assert imports.read_text().split() == []
