"""How many workers there are by default: affinity and quota."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blackhole import processors
from tests.program import ROOT, environment

pytestmark = pytest.mark.pure


def quota(folder: Path, cgroups: str, **files: str) -> float:
    (folder / "cgroup").write_text(cgroups)
    for name, text in files.items():
        path = folder / "fs" / name.replace("__", "/").replace("_at_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return processors.quota(str(folder / "cgroup"), str(folder / "fs"))


def test_quota_of_version_2_is_that_of_the_group(tmp_path: Path) -> None:
    assert quota(tmp_path, "0::/\n", cpu_at_max="50000 100000\n") == 0.5


def test_least_quota_of_a_group_and_those_above_it_counts(tmp_path: Path) -> None:
    files = {
        "a__cpu_at_max": "200000 100000\n",
        "a__b__cpu_at_max": "max 100000\n",
        "cpu_at_max": "max 100000",
    }
    assert quota(tmp_path, "0::/a/b\n", **files) == 2.0


def test_quota_of_version_1_is_read_too(tmp_path: Path) -> None:
    folder = tmp_path / "fs/cpu,cpuacct/pod"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("150000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert quota(tmp_path, "3:memory:/x\n2:cpu,cpuacct:/pod\n") == 1.5
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert quota(tmp_path, "2:cpu,cpuacct:/pod\n") == math.inf


@pytest.mark.parametrize("cgroups", ["", "nonsense\n", "0::/gone\n"])
def test_no_quota_is_infinite(tmp_path: Path, cgroups: str) -> None:
    assert quota(tmp_path, cgroups) == math.inf


def test_half_a_processor_is_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64))
    for allowed, workers in ((0.5, 1), (1.0, 1), (1.5, 2), (math.inf, 64)):
        monkeypatch.setattr(processors, "quota", lambda allowed=allowed: allowed)
        assert processors.available() == workers


def test_program_without_affinity_counts_all_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyPy has no sched_getaffinity."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processors.available() == 1


def test_quota_of_a_real_control_group_limits_the_workers() -> None:
    """Of version 1, where root may make a group; elsewhere, the group of this process has no quota or one."""
    group = Path("/sys/fs/cgroup/cpu/blackhole-test")
    try:
        group.mkdir()
    except OSError:
        assert processors.quota() > 0
        return
    try:
        (group / "cpu.cfs_quota_us").write_text("50000")
        code = (
            f"import os; open('{group}/cgroup.procs', 'w').write(str(os.getpid())); "
            "from blackhole import processors; print(processors.available(), processors.quota())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "1 0.5\n"
    finally:
        group.rmdir()
