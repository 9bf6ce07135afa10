"""The machine: its cores, who runs where, and what a reader of the numbers must know of it."""

from __future__ import annotations

import os
import platform
import resource
import ssl
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""

FILES = 20_000
"""Descriptors a crowd of idle connections needs, on either side."""

CORES = sorted(os.sched_getaffinity(0))
SENDER = CORES[-1:]
"""Whatever drives a server runs here."""
SERVER = CORES[:1]
"""One worker runs here."""


def pinned(cores: list[int]) -> list[str]:
    """What to put before a command so that it runs on these cores only."""
    return ["taskset", "-c", ",".join(map(str, cores))]


def output(*command: str) -> str:
    """The first line a command prints, or a dash where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT)
    except OSError:
        return "-"
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0].strip() if lines else "-"


def description() -> dict[str, str]:
    """The header of a report."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")), "-")
    memory = Path("/proc/meminfo").read_text().split()[1]
    changed = "" if output("git", "status", "--porcelain", "blackhole") == "-" else ", changed since"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{model}, {len(CORES)} cores, {int(memory) >> 20} GiB",
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "OpenSSL": f"{ssl.OPENSSL_VERSION} (Python), {output('openssl', 'version')} (openssl)",
        "Postfix": output("/usr/sbin/postconf", "-dh", "mail_version"),
        "commit": output("git", "describe", "--always", "--tags") + changed,
    }


def open_files(wanted: int) -> int:
    """Allow this process and those it starts `wanted` descriptors, or as many as may be had."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if os.geteuid() == 0:
        hard = max(hard, wanted)
    soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
