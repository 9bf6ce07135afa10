"""A minimal Debian, made by mmdebstrap once and kept in build/."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.external_programs import path_of
from tests.program import ROOT

SUITE = "bookworm"
BASE = ROOT / "build" / f"{SUITE}.tar"


def base_archive() -> Path:
    """Return an archive of a Debian with Python."""
    if not BASE.exists():
        BASE.parent.mkdir(exist_ok=True)
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
