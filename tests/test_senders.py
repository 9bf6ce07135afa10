"""Programs and libraries of other projects send mail, and none is accused beyond what the documents say."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Certificate
from tests.external_programs import find_program, missing
from tests.program import ROOT, Program, scenario_option
from tests.senders import FOLDER, SENDERS, TASKS, Delivery, Sender, documented

FOUND = Path(os.environ.get("BLACKHOLE_TEST_SENDERS", FOLDER))

RULES = """
[[rule]]
phase = "RCPT"
recipient = "refused@*"
reply = "550 5.1.1 No such user"

[[rule]]
phase = "RCPT"
recipient = "later@*"
reply = "451 4.3.0 Try again later"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[Program]:
    rules = scenario_option(tmp_path_factory.mktemp("rules"), RULES)
    with Program(
        "--workers=1", "--inspect=all", "--hostname=mx.test", rules, *certificate.options
    ) as program:
        yield program


def needs(sender: Sender) -> pytest.MarkDecorator:
    """Return a mark that skips the test of a sender that is not there."""
    reasons = [missing(name) for name in sender.programs if find_program(name) is None]
    if not FOUND.is_dir():
        reasons.append("the senders are not there: make .venv/.senders")
    if os.geteuid() != 0:
        reasons.append("only root can do this")
    return pytest.mark.skipif(bool(reasons), reason="; ".join(reasons))


@pytest.mark.parametrize(
    "sender", [pytest.param(one, id=one.name, marks=needs(one)) for one in SENDERS if one.send is not None]
)
def test_sender_is_accused_of_what_the_documents_say(
    sender: Sender, server: Program, certificate: Certificate, postfix_folder: Path
) -> None:
    """`postfix_folder` is one that users other than root can reach."""
    assert sender.send is not None
    trusted = postfix_folder / "ca.pem"
    trusted.write_bytes(Path(certificate.ca).read_bytes())
    for number, (name, kind) in enumerate(TASKS.items()):
        if name in sender.without:
            continue
        folder = postfix_folder / str(number)
        folder.mkdir(mode=0o755)
        delivery = Delivery(server.port, kind.recipients, kind.tls, str(trusted), folder, FOUND)
        before = server.snapshot()
        sender.send(delivery)
        server.wait_until_idle()
        after = server.snapshot()
        assert after.commands["RCPT"] > before.commands["RCPT"], f"{name}: {delivery.output}"
        if name in ("plain", "two recipients", "STARTTLS"):
            assert after.messages["accepted"] > before.messages["accepted"], f"{name}: {delivery.output}"
        found = Counter(after.violations) - Counter(before.violations)
        assert set(found) == sender.accused_of(name), f"{name}: {delivery.output}"


def test_documents_list_the_senders_and_what_each_is_accused_of() -> None:
    table = (ROOT / "docs" / "report.md").read_text()
    assert [row for row in documented() if row not in table] == []
