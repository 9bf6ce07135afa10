"""Programs of other projects that tests run, such as swaks, curl and Postfix.

    @requires("swaks")
    def test_swaks_delivers_a_message(program: Program) -> None:
        output_of(path_of("swaks"), f"--server=127.0.0.1:{program.port}", ...)

The mark skips a test before its fixtures start anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

SEARCH_PATH = os.environ.get("BLACKHOLE_TEST_PATH") or os.pathsep.join(
    (os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin")
)
"""PATH, and the folders of system programs, which are missing from the PATH of an ordinary user.

BLACKHOLE_TEST_PATH takes its place: with a folder that does not exist, tests run as on a bare machine.
"""

DEBIAN_PACKAGES = {
    "chromedriver": "chromium-driver",
    "dnsmasq": "dnsmasq-base",
    "fail2ban-client": "fail2ban",
    "fail2ban-regex": "fail2ban",
    "ip": "iproute2",
    "postqueue": "postfix",
    "promtool": "prometheus",
    "sendmail": "postfix",
    "smtp-sink": "postfix",
    "smtp-source": "postfix",
    "systemd-socket-activate": "systemd",
}
"""The packages whose names differ from those of their programs."""


ASKED_FILE = os.environ.get("BLACKHOLE_TEST_ASKED", "")
"""A file to which the names of the tests are appended that ask for a program while they run.

All others do the same whatever is installed.
"""


def find_program(name: str) -> str | None:
    """Return the path of a program, or None if it is not installed."""
    if ASKED_FILE and (test := os.environ.get("PYTEST_CURRENT_TEST")):
        with open(ASKED_FILE, "a") as file:
            file.write(f"{test.rpartition(' ')[0]}\n")
    return shutil.which(name, path=SEARCH_PATH)


def missing(name: str) -> str:
    """Return the sentence that says that a program is missing."""
    if name == "helm":
        return "helm (which .ci/helm.py installs) is not installed"
    return f"{name} (Debian package {DEBIAN_PACKAGES.get(name, name)}) is not installed"


def requires(*names: str, root: bool = False) -> pytest.MarkDecorator:
    """Return a mark that skips a test, before its fixtures are made, if one of the programs is missing.

    With `root` it also skips the test if the tests do not run as root.
    """
    reasons = [missing(name) for name in names if find_program(name) is None]
    if root and os.geteuid() != 0:
        reasons.append("only root can do this")
    return pytest.mark.skipif(bool(reasons), reason="; ".join(reasons))


def path_of(name: str) -> str:
    """Return the path of an installed program. Raises FileNotFoundError."""
    path = find_program(name)
    if path is None:
        raise FileNotFoundError(missing(name))
    return path


def output_of(*command: str, text: str | None = None, timeout: float = 60) -> str:
    """Run a command that must exit with 0, and return its standard output and error.

    `text` is its standard input, `timeout` is in seconds.
    """
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
