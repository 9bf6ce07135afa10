"""The machine: its cores, which process runs on which, and the header of a report."""

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

MAX_OPEN_FILES = 20_000
"""Descriptors that many idle connections need, in the server and in the client."""

CORES = sorted(os.sched_getaffinity(0))
SENDER_CORES = CORES[-1:]
"""Cores of the senders."""
SERVER_CORES = CORES[:1]
"""Cores of a server with one worker."""


def taskset(cores: list[int]) -> list[str]:
    """Return the words before a command that make it run on these cores only."""
    return ["taskset", "-c", ",".join(map(str, cores))]


def first_line(*command: str) -> str:
    """Return the first line that a command prints, or a dash if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT)
    except OSError:
        return "-"
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0].strip() if lines else "-"


def description() -> dict[str, str]:
    """Return the header of a report."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")), "-")
    memory = Path("/proc/meminfo").read_text().split()[1]
    changed = "" if first_line("git", "status", "--porcelain", "blackhole") == "-" else ", changed since"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{model}, {len(CORES)} cores, {int(memory) >> 20} GiB",
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "OpenSSL": f"{ssl.OPENSSL_VERSION} (Python), {first_line('openssl', 'version')} (openssl)",
        "Postfix": first_line("/usr/sbin/postconf", "-dh", "mail_version"),
        "commit": first_line("git", "describe", "--always", "--tags") + changed,
    }


def open_files(wanted: int) -> int:
    """Raise the limit of open files to `wanted` or the hard limit, and return it. Children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if os.geteuid() == 0:
        hard = max(hard, wanted)
    soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
