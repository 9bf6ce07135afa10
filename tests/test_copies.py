"""Other copies of Blackhole: --version tells, because a command of another release may come first."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from blackhole import copies
from tests.program import MODULE, ROOT, run, run_python

pytestmark = pytest.mark.pure


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return a folder with another package and another command."""
    (tmp_path / "blackhole").mkdir()
    (tmp_path / "blackhole/__init__.py").write_text("")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/blackhole"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    return tmp_path


def test_version_tells_of_another_package_and_another_command(other: Path) -> None:
    done = run("--version", PYTHONPATH=f"{ROOT}:{other}", PATH=f"{other}/bin:/usr/bin")
    lines = done.stdout.splitlines()
    assert f"Another package blackhole is in {other}/blackhole; this one is in {ROOT}/blackhole" in lines
    assert f"Another command blackhole is {other}/bin/blackhole; this one is {ROOT}/bin/blackhole" in lines


def test_version_says_nothing_without_another_copy() -> None:
    done = run("--version", PATH=f"{ROOT}/bin:/usr/bin")
    assert "Another" not in done.stdout
    done = run("--version", command=MODULE, PATH=f"{ROOT}/bin:/usr/bin")
    assert "Another" not in done.stdout


def test_link_to_this_copy_is_not_another_one(other: Path) -> None:
    shutil.rmtree(other / "blackhole")
    (other / "blackhole").symlink_to(ROOT / "blackhole")
    assert list(copies.other_packages(str(ROOT / "blackhole"), [str(other), str(ROOT), "/nowhere"])) == []


def test_command_that_cannot_be_run_is_not_one(other: Path) -> None:
    (other / "bin/blackhole").chmod(0o644)
    assert list(copies.other_commands("x", f"{other}/bin{os.pathsep}{os.pathsep}/nowhere")) == []


def test_other_systems_than_linux_get_one_line() -> None:
    done = run_python("""
        for name in [name for name in sys.modules if name.startswith("blackhole")]:
            del sys.modules[name]
        sys.platform = "darwin"
        from blackhole.__main__ import main
        code = main()
        sys.exit(1 if "blackhole.main" in sys.modules else code)
    """)
    assert (done.returncode, done.stdout) == (os.EX_UNAVAILABLE, "")
    assert done.stderr.startswith("Blackhole runs on Linux only. Elsewhere, run it in a container: ")
    assert done.stderr.count("\n") == 1
