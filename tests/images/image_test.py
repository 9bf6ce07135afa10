"""The container image: built by buildah on a Debian of mmdebstrap, run as a container runtime runs it.

The image runs as PID 1 of its own PID namespace, as an ordinary user, on a read-only file system.
"""

from __future__ import annotations

import json
import os
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.external_programs import output_of, path_of, requires
from tests.http_api import ask, raw
from tests.images.debian import base_archive
from tests.program import ROOT, alive, children, free_port, title, wait_for

pytestmark = [requires("buildah", "mmdebstrap", root=True), pytest.mark.timeout(1200)]

MAX_MEGABYTES = 120

RUN = (
    'mount --bind "$ROOT" "$ROOT" && mount -o remount,bind,ro "$ROOT" && mount --rbind /dev "$ROOT/dev" && '
    'mount -t proc proc "$ROOT/proc" && '
    "exec setpriv --no-new-privs --bounding-set=-all,+sys_chroot,+setuid,+setgid "
    'chroot --userspec="$USER_ID" --groups= "$ROOT" "$@"'
)
"""What a container runtime does, for a root file system and a command. It keeps the network of the host."""

DEPENDENCIES = (".[certs,dkim,proxy,redis]", "setuptools>=77", "shtab>=1.7", "async-timeout")
"""What the build installs. Python 3.11.2 of Debian 12 needs async-timeout for redis."""


class Image:
    """The image in a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        options = f"--root {folder}/store --runroot {folder}/run --storage-driver vfs"
        self.buildah = (path_of("buildah"), *options.split())
        base = self.run("from", "scratch")
        self.run("add", "--quiet", base, str(base_archive()), "/")
        self.run("commit", "--quiet", base, "localhost/base")
        self.build()
        self.container = self.run("from", "--pull-never", "localhost/blackhole")
        self.root = Path(self.run("mount", self.container))
        self.config = json.loads(self.run("inspect", "--type", "image", "localhost/blackhole"))["Docker"]

    def run(self, *words: str) -> str:
        done = subprocess.run([*self.buildah, *words], stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.strip()

    def build(self) -> None:
        """Build from the files that git knows, with wheels in place of a package index."""
        source, wheels = self.folder / "source", self.folder / "wheels"
        source.mkdir()
        files = output_of("git", "-C", str(ROOT), "ls-files", "-z").split("\0")
        archive = subprocess.run(
            ["tar", "-C", str(ROOT), "-c", "--no-recursion", *filter(None, files)],
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        subprocess.run(["tar", "-C", str(source), "-x"], input=archive, check=True)
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "-w", str(wheels), *DEPENDENCIES]
        subprocess.run(pip, check=True, cwd=source)
        for wheel in wheels.glob("blackhole*"):
            wheel.unlink()
        self.run(
            *("bud", "--quiet", "--isolation=chroot", "--pull-never", "--format=docker"),
            *("--build-arg=BASE=localhost/base", "--build-arg=PIP_NO_INDEX=1"),
            *("--build-arg=PIP_FIND_LINKS=/wheels", f"--volume={wheels}:/wheels:ro"),
            *("-t", "localhost/blackhole", "-f", "contrib/container/Containerfile", str(source)),
        )

    def environment(self, **more: str) -> dict[str, str]:
        given = dict(entry.split("=", 1) for entry in self.config["config"]["Env"])
        # PATH of the image is also that of the programs that set the container up.
        return given | {"PATH": f"{given['PATH']}:/usr/sbin:/usr/bin:/sbin:/bin"} | more

    def command(self) -> list[str]:
        return list(self.config["config"]["Entrypoint"])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    built = Image(tmp_path_factory.mktemp("image"))
    yield built
    built.run("rm", "--all")
    built.run("rmi", "--all", "--force")


class Container:
    """The image, run; `init` is its PID 1."""

    def __init__(self, image: Image) -> None:
        self.image, self.port, self.http = image, free_port(), free_port()
        self.environment = image.environment(
            ROOT=str(image.root),
            USER_ID=image.config["config"]["User"],
            BLACKHOLE_HOST="127.0.0.1",
            BLACKHOLE_PORT=str(self.port),
            BLACKHOLE_DASHBOARD=f"127.0.0.1:{self.http}",
            BLACKHOLE_WORKERS="2",
        )
        words = ["unshare", "--fork", "--pid", "--mount", "--kill-child", "sh", "-c", RUN, "sh"]
        self.log = image.folder / f"log{self.port}"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*words, *image.command()], env=self.environment, stdout=log, stderr=log
            )
        try:
            wait_for(lambda: "All mail is thrown away" in self.output(), "the container is ready", 30)
        except AssertionError:
            self.process.kill()
            self.process.wait()
            raise AssertionError(self.output()) from None
        self.init = children(self.process.pid)[0]

    def output(self) -> str:
        return self.log.read_text()

    def check(self) -> subprocess.CompletedProcess[str]:
        """Run the health command of the image."""
        words = self.image.config["config"]["Healthcheck"]["Test"]
        assert words[0] == "CMD", "there is no shell"
        uid, gid = self.environment["USER_ID"].split(":")
        user = f"--setuid={uid}", f"--setgid={gid}"
        return subprocess.run(
            ["nsenter", f"--target={self.init}", "--mount", "--pid", "--root", *user, *words[1:]],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def stop(self) -> int:
        name = self.image.config["config"]["StopSignal"]
        os.kill(self.init, signal.Signals[name])
        return self.process.wait(60)


@pytest.fixture
def container(image: Image) -> Iterator[Container]:
    running = Container(image)
    yield running
    if running.process.poll() is None:
        os.kill(running.init, signal.SIGKILL)
        running.process.wait(30)


def test_image_is_small_and_has_no_shell(image: Image) -> None:
    size = sum(
        path.lstat().st_size for path in image.root.rglob("*") if path.is_file() and not path.is_symlink()
    )
    print(f"{size / 1e6:.1f} MB")
    assert size < MAX_MEGABYTES * 1e6
    programs = [
        name for name in ("sh", "bash", "dash", "apt", "dpkg", "pip") if list(image.root.rglob(f"bin/{name}"))
    ]
    assert programs == []
    assert image.config["config"]["Labels"]["org.opencontainers.image.title"] == "Blackhole"


def test_container_takes_mail_as_an_ordinary_user_without_writing(container: Container) -> None:
    with smtplib.SMTP("127.0.0.1", container.port, timeout=30) as client:
        client.sendmail("a@example.com", ["b@example.com"], "Subject: x\r\n\r\nx\r\n")
    assert ask(container.http, "/readyz").json == {"workers": 2}
    assert b"blackhole_messages_total" in ask(container.http, "/metrics").body
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{container.init}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["NSpid"].split()[-1] == "1"
    assert status["Uid"].split() == ["65534"] * 4
    assert (status["CapEff"], status["NoNewPrivs"]) == ("0" * 16, "1")
    mounts = Path(f"/proc/{container.init}/mountinfo").read_text().splitlines()
    assert [line.split()[5].split(",")[0] for line in mounts if line.split()[4] == "/"][-1] == "ro"
    assert "WARNING" not in container.output()


def test_health_command_follows_smtp_and_not_http(container: Container) -> None:
    assert container.check().returncode == 0
    workers = [pid for pid in children(container.init) if title(pid).startswith("blackhole: worker")]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    done = container.check()
    assert ask(container.http, "/healthz").status == 200
    for pid in filter(alive, workers):
        os.kill(pid, signal.SIGCONT)
    assert (done.returncode, "expected 220" in done.stderr) == (1, True), done.stderr
    wait_for(lambda: container.check().returncode == 0, "it is healthy again", 30)


def test_stop_lets_an_open_session_finish_its_message(container: Container) -> None:
    with socket.create_connection(("127.0.0.1", container.port), 30) as client:
        client.recv(999)
        for line in ("EHLO app.example.com", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA"):
            client.sendall(f"{line}\r\n".encode())
            client.recv(999)
        os.kill(container.init, signal.SIGTERM)
        wait_for(lambda: not listens(container.port), "it does not listen any more")
        client.sendall(b"Subject: x\r\n\r\nx\r\n.\r\n")
        assert client.recv(999).startswith(b"250 ")
    assert container.process.wait(30) == 0


def listens(port: int) -> bool:
    try:
        raw(port, b"QUIT\r\n")
    except OSError:
        return False
    return True


def test_stop_signal_ends_an_idle_container_at_once(container: Container) -> None:
    assert container.stop() == 0
