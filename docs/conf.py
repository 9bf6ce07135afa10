"""How the documentation is built. Its tables come from the program, at each build, so they cannot drift."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import tables  # noqa: E402

import blackhole  # noqa: E402

project = "Blackhole"
author = "The Blackhole authors"
copyright = f"2026, {author}"
version = release = blackhole.__version__

extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_generated"]
nitpicky = True

html_theme = "furo"
html_title = f"Blackhole {release}"
html_copy_source = False
html_show_sphinx = False


def setup(app):
    """Called by Sphinx."""
    app.connect("builder-inited", lambda app: tables.write(HERE / "_generated"))
