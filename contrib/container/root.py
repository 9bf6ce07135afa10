"""Copy a virtual environment, its Python and the libraries that they need into the root of an image.

Run by the Python of the virtual environment: python -I root.py FOLDER
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

UNUSED = (
    *("test", "idlelib", "tkinter", "lib2to3", "turtledemo", "ensurepip", "pydoc_data", "config-*"),
    *("[Aa]ctivate*", "cffi-gen-src", "proxyprotocol-*"),
)
"""Parts of the standard library and of the virtual environment that no server needs."""

DATA = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/openssl.cnf",
    "/usr/lib/ssl/openssl.cnf",
    "/usr/share/zoneinfo/UTC",
)

ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/:/nonexistent\nnobody:x:65534:65534:nobody:/nonexistent:/nonexistent\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def libraries(paths: list[Path]) -> set[Path]:
    """Return the shared libraries that programs and extension modules are linked to."""
    found: set[Path] = set()
    for path in paths:
        done = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False)
        found.update(Path(name) for name in re.findall(r"(/\S+) \(0x", done.stdout))
    return found


def copy(path: Path, root: Path) -> None:
    """Copy a file to the same place below `root`; a link is copied with what it leads to."""
    target = root / str(path).lstrip("/")
    if target.exists() or not path.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target)


def main(root: Path) -> None:
    """Make the root of the image."""
    environment = Path(sys.prefix)
    library = Path(
        sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix})
    )
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", *UNUSED)
    shutil.copytree(environment, root / str(environment).lstrip("/"), symlinks=True, ignore=ignored)
    shutil.copytree(library, root / str(library).lstrip("/"), symlinks=False, ignore=ignored)
    python = Path(os.path.realpath(sys.executable))
    for link in (Path("/usr/bin/python3"), python):
        copy(link, root)
    modules = [*root.rglob("*.so"), python]
    # glibc loads these when a name is looked up.
    services = [
        path
        for folder in {one.parent for one in libraries([python])}
        for name in ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2")
        if (path := folder / name).exists()
    ]
    for path in {*libraries(modules), *services, *map(Path, DATA)}:
        copy(path, root)
    for name, text in ACCOUNTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("dev", "proc", "run", "sys", "tmp"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    compileall.compile_dir(root, maxlevels=20, quiet=1, stripdir=str(root), prependdir="/")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
