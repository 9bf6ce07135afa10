"""What the tests of real senders ask a running program: which violations it has counted."""

from __future__ import annotations

import json
from pathlib import Path

from blackhole.metrics import report
from tests.certificates import Certificate
from tests.program import Program, run


def violations_of(program: Program) -> list[str]:
    """Return the violations so far, once every connection is closed."""
    program.wait_until_idle()
    return [one.rule.name for one in report.findings(program.snapshot())]


def reported_violations(program: Program, pid: Path) -> list[str]:
    """Return the violations that `blackhole report` finds, once every connection is closed."""
    program.wait_until_idle()
    done = run("report", f"--pid={pid}", "--format=json")
    assert done.returncode == 0, done.stderr
    return [one["rule"] for one in json.loads(done.stdout)["findings"]]


def checking_program(certificate: Certificate, *options: str) -> Program:
    """Return a program with one worker, which checks the first 16 sessions, and with STARTTLS."""
    secure = (f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}")
    return Program("--workers=1", "--hostname=mx.test", *secure, *options)
