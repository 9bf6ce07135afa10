"""The Debian package: installed in a minimal Debian of mmdebstrap, used, removed and purged."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blackhole import __version__
from tests.external_programs import requires
from tests.http_api import sent
from tests.images.debian import base_archive
from tests.program import ROOT, free_port

pytestmark = [requires("dpkg-deb", "mmdebstrap", root=True), pytest.mark.timeout(1200)]


class Debian:
    """A root file system, and commands in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            ["chroot", str(self.root), *words],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def files(self) -> set[str]:
        """Return all files that the package, its scripts or its program could have made."""
        folders = ("etc", "usr", "var/log", "run", "opt")
        found = {
            str(path.relative_to(self.root)) for folder in folders for path in (self.root / folder).rglob("*")
        }
        return {name for name in found if not name.startswith("usr/lib/python3") and not name.endswith("-")}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the package, built."""
    folder = tmp_path_factory.mktemp("deb")
    subprocess.run([sys.executable, str(ROOT / "contrib/debian/build.py"), str(folder)], check=True)
    (built,) = folder.glob("*.deb")
    return built


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Debian]:
    root = tmp_path_factory.mktemp("debian")
    subprocess.run(["tar", "-C", str(root), "-xf", str(base_archive())], check=True)
    subprocess.run(["mount", "-t", "proc", "proc", str(root / "proc")], check=True)
    yield Debian(root)
    subprocess.run(["umount", str(root / "proc")], check=True)


def test_package_is_installed_used_and_purged_without_a_trace(package: Path, debian: Debian) -> None:
    before = debian.files()
    accounts = (debian.root / "etc/passwd").read_text(), (debian.root / "etc/group").read_text()
    (debian.root / "package.deb").write_bytes(package.read_bytes())
    debian.run("dpkg", "--install", "/package.deb")

    assert debian.run("blackhole", "--version").startswith(f"Blackhole {__version__}\n")
    assert debian.run("blackhole", "--conf", "/etc/blackhole.conf", "-t") == "The configuration is good.\n"
    assert debian.run("getent", "passwd", "blackhole").endswith(":/nonexistent:/usr/sbin/nologin\n")
    page = gzip.decompress((debian.root / "usr/share/man/man1/blackhole.1.gz").read_bytes())
    assert page.startswith(b".TH BLACKHOLE 1")
    unit = (debian.root / "usr/lib/systemd/system/blackhole.service").read_text()
    assert "ExecStart=/usr/bin/blackhole --conf /etc/blackhole.conf\n" in unit
    assert "/usr/bin/blackhole reopen" in (debian.root / "etc/logrotate.d/blackhole").read_text()
    assert (debian.root / "usr/share/bash-completion/completions/blackhole").is_file()

    port = free_port()
    options = "--host=127.0.0.1", f"--port={port}", "--dashboard=off", "--workers=1"
    debian.run("blackhole", *options, "start")
    assert sent(port)
    assert "1 message" in debian.run("blackhole", "report")
    pid = int((debian.root / "run/blackhole.pid").read_text().split()[0])
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    uid = debian.run("id", "-u", "blackhole").strip()
    assert f"\nUid:\t{uid}\t" in Path(f"/proc/{workers[0]}/status").read_text()
    debian.run("blackhole", "stop")

    debian.run("dpkg", "--remove", "blackhole-smtp")
    assert (debian.root / "etc/blackhole.conf").is_file(), "conf files stay until a purge"
    debian.run("dpkg", "--purge", "blackhole-smtp")
    left = {name for name in debian.files() - before if "dpkg" not in name}
    assert left == set()
    assert ((debian.root / "etc/passwd").read_text(), (debian.root / "etc/group").read_text()) == accounts
