"""Sphinx's configuration of the documentation."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import blackhole

project = "Blackhole"
author = "The Blackhole authors"
copyright = f"2026, {author}"
version = release = blackhole.__version__

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"Blackhole {release}"
html_copy_source = False
html_show_sphinx = False
