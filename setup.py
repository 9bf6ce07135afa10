"""The build: makes the description, the man page and the completions. The metadata is in setup.cfg.

With BLACKHOLE_COMPILE=1 in the environment, some modules become extension modules.
"""

import configparser
import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHARED = Path("build", "shared")
INSTALLED = (
    "share/man/man1/blackhole.1",
    "share/bash-completion/completions/blackhole",
    "share/zsh/site-functions/_blackhole",
)


def description() -> str:
    """Return README.md with absolute links, as an index page needs; without a Source URL, without links."""
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg", "utf-8")
    urls = dict(line.split(" = ", 1) for line in metadata["metadata"]["project_urls"].split("\n") if line)
    base = urls.get("Source")
    link = rf"[\1]({base}/blob/HEAD/\2)" if base else r"\1"
    return re.sub(r"\[([^]]+)\]\((?![a-z]+:|#)([^)]+)\)", link, (ROOT / "README.md").read_text("utf-8"))


class BuildWithManual(build_py):
    """Makes the man page and the completions before they are installed."""

    def run(self) -> None:
        super().run()
        sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
        import manual

        manual.write(SHARED)


COMPILES = os.environ.get("BLACKHOLE_COMPILE") == "1"


def extension_modules() -> list[Extension]:
    """Return the extension modules of a compiled build, made by mypyc."""
    if not COMPILES or not {"bdist_wheel", "build", "build_ext"}.intersection(sys.argv):
        return []
    for built in (ROOT / "build").glob("lib.*"):
        shutil.rmtree(built)  # A module that is no longer in the table would be installed.
    sys.path.insert(0, str(ROOT))
    from mypyc.build import mypycify

    from blackhole.compiled_modules import COMPILED_MODULES, source_of

    return mypycify(list(map(source_of, COMPILED_MODULES)), group_name="blackhole", debug_level="0")


if COMPILES and "editable_wheel" in sys.argv:
    sys.exit(
        "BLACKHOLE_COMPILE=1 is for `pip install .` and `pip wheel .`; an editable install is pure Python"
    )

setup(
    ext_modules=extension_modules(),
    setup_requires=["mypy[mypyc]>=2.4"] if COMPILES else [],
    cmdclass={"build_py": BuildWithManual},
    data_files=[(str(Path(place).parent), [str(SHARED / place)]) for place in INSTALLED],
    long_description=description(),
    long_description_content_type="text/markdown",
)
