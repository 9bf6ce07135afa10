"""A minimal Debian, made by mmdebstrap once and kept in build/."""

from __future__ import annotations

import os
import subprocess
from fcntl import LOCK_EX, flock
from pathlib import Path

from tests.external_programs import path_of
from tests.program import ROOT

SUITE = "bookworm"
BASE = ROOT / "build" / f"{SUITE}.tar"


def base_archive() -> Path:
    """Return an archive of a Debian with Python. Of several processes that ask for it, one makes it."""
    BASE.parent.mkdir(exist_ok=True)
    with BASE.with_suffix(".lock").open("w") as lock:
        flock(lock, LOCK_EX)
        if not BASE.exists():
            partial = BASE.with_suffix(".partial.tar")
            subprocess.run(
                [
                    path_of("mmdebstrap"),
                    "--mode=root",
                    "--variant=minbase",
                    "--include=python3-venv,ca-certificates",
                    SUITE,
                    str(partial),
                ],
                check=True,
            )
            os.rename(partial, BASE)
    return BASE
