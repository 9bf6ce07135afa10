"""Build a Debian package: python contrib/debian/build.py FOLDER

The package brings Blackhole and the Python packages that it needs in /usr/lib/blackhole: those of Debian
are older than it needs. It depends on the python3 of Debian, which must be of the version that runs this.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARY = "usr/lib/blackhole"
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
NEXT_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1] + 1}"
MAINTAINER = "The Blackhole authors <blackhole@localhost>"

COMMAND = f"""\
#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "/{LIBRARY}")

from blackhole.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main())
"""

CONTROL = """\
Package: blackhole-smtp
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {size}
Depends: python3 (>= {python}), python3 (<< {next_python}~), passwd
Suggests: logrotate
Conflicts: blackhole
Section: mail
Priority: optional
Description: SMTP server for tests that accepts any mail and discards it
 Blackhole accepts any mail and throws it away, or misbehaves as a scenario
 says, and reports what the sender did wrong.
"""

CONFFILES = "/etc/blackhole.conf\n/etc/logrotate.d/blackhole\n"

SCRIPTS = {
    "postinst": """\
        #!/bin/sh
        set -e
        if [ "$1" = configure ]; then
            getent passwd blackhole >/dev/null ||
                useradd --system --user-group --no-create-home --home-dir /nonexistent \\
                    --shell /usr/sbin/nologin blackhole
            python3 -m compileall -q /usr/lib/blackhole
            if [ -d /run/systemd/system ]; then
                systemctl daemon-reload
                if [ -n "$2" ]; then systemctl try-restart blackhole.service; fi
            fi
        fi
        """,
    "prerm": """\
        #!/bin/sh
        set -e
        if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
            systemctl disable --now blackhole.service || true
        fi
        find /usr/lib/blackhole -name __pycache__ -type d -prune -exec rm -rf {} +
        """,
    "postrm": """\
        #!/bin/sh
        set -e
        if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
        if [ "$1" = purge ]; then
            rm -f /var/log/blackhole.log*
            if getent passwd blackhole >/dev/null; then userdel blackhole; fi
        fi
        """,
}
"""Scripts of the package: the service is not started, because it would open port 25 to everybody."""


def debian_version(version: str) -> str:
    """Return a version that Debian sorts before the release it leads to: 1.9.0.dev0 becomes 1.9.0~dev0."""
    return re.sub(r"\.?(dev|a|b|rc)(\d+)$", r"~\1\2", version)


def install_packages(target: Path) -> None:
    """Install Blackhole and what it needs, by pip."""
    with tempfile.TemporaryDirectory() as wheels:
        pip = [sys.executable, "-m", "pip", "--quiet"]
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, str(ROOT)], check=True)
        (wheel,) = Path(wheels).glob("*.whl")
        # redis needs async-timeout for Python 3.11.2, which Debian 12 has.
        packages = [f"{wheel}[certs,dkim,proxy,redis]", *(["async-timeout"] if PYTHON == "3.11" else [])]
        subprocess.run([*pip, "install", "--no-compile", "--target", str(target), *packages], check=True)
    for name in ("bin", "share"):
        shutil.rmtree(target / name, ignore_errors=True)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    path.chmod(mode)


def fill(package: Path) -> None:
    """Write all files of the package but those that describe it."""
    install_packages(package / LIBRARY)
    write(package / "usr/bin/blackhole", COMMAND, 0o755)
    for source, place in {
        "contrib/systemd/blackhole.service": "usr/lib/systemd/system/blackhole.service",
        "contrib/logrotate/blackhole": "etc/logrotate.d/blackhole",
        "blackhole.conf.sample": "etc/blackhole.conf",
        "LICENSE": "usr/share/doc/blackhole-smtp/copyright",
    }.items():
        text = (ROOT / source).read_text("utf-8").replace("/usr/local/bin/", "/usr/bin/")
        write(package / place, text)
    sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
    import manual

    manual.write(package / "usr")
    page = package / "usr/share/man/man1/blackhole.1"
    compressed = gzip.compress(page.read_bytes(), mtime=0)
    page.with_name("blackhole.1.gz").write_bytes(compressed)
    page.unlink()
    zsh = package / "usr/share/zsh/site-functions"
    zsh.rename(zsh.with_name("vendor-completions"))


def main(folder: Path) -> None:
    """Build the package in a folder, and print its path."""
    output = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
    architecture = output.stdout.strip()
    with tempfile.TemporaryDirectory() as name:
        package = Path(name) / "package"
        fill(package)
        from blackhole import __version__

        version = debian_version(__version__)
        size = sum(path.lstat().st_size for path in package.rglob("*")) // 1024
        values = {"python": PYTHON, "next_python": NEXT_PYTHON, "maintainer": MAINTAINER}
        control = CONTROL.format(version=version, architecture=architecture, size=size, **values)
        write(package / "DEBIAN/control", control)
        write(package / "DEBIAN/conffiles", CONFFILES)
        for script, text in SCRIPTS.items():
            write(package / "DEBIAN" / script, dedent(text), 0o755)
        package.chmod(0o755)
        for path in package.rglob("*"):
            if path.is_dir():
                path.chmod(0o755)
        folder.mkdir(parents=True, exist_ok=True)
        built = folder / f"blackhole-smtp_{version}_{architecture}.deb"
        command = ["dpkg-deb", "--root-owner-group", "--build", str(package), str(built)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(built)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
