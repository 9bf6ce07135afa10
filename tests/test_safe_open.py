"""Opening files in directories where other users may write."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from blackhole.process.safe_open import open_regular
from blackhole.settings import OperatorError
from tests.program import NOBODY, as_root

pytestmark = pytest.mark.pure

OBSTACLES: dict[str, Callable[[Path, Path], object]] = {
    "a symbolic link": lambda path, other: path.symlink_to(other),
    "a hard link": lambda path, other: path.hardlink_to(other),
    "a pipe": lambda path, other: os.mkfifo(path),
    "a directory": lambda path, other: path.mkdir(),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_only_a_regular_file_with_one_name_is_opened(tmp_path: Path, obstacle: str) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_text("precious")
    OBSTACLES[obstacle](path, other)
    with pytest.raises(OperatorError, match=re.escape(str(path))) as caught:
        open_regular(str(path), os.O_RDWR | os.O_CREAT, 0o600)
    assert caught.value.code == os.EX_CANTCREAT
    assert other.read_text() == "precious"


def test_missing_directory_is_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "none" / "log"
    with pytest.raises(OperatorError, match=f"cannot open {path}: No such file or directory"):
        open_regular(str(path), os.O_WRONLY | os.O_CREAT, 0o600)


def open_log(path: Path) -> None:
    os.close(open_regular(str(path), os.O_WRONLY | os.O_CREAT, 0o600))


def test_links_that_this_user_or_root_made_are_followed_on_the_way(tmp_path: Path) -> None:
    """As /var/run, which leads to /run."""
    real = tmp_path / "a" / "real"
    real.mkdir(parents=True)
    (tmp_path / "absolute").symlink_to(real)
    (tmp_path / "relative").symlink_to("a/../a/real")
    (tmp_path / "chain").symlink_to("relative")
    for name in ("absolute", "relative", "chain"):
        open_log(tmp_path / name / name)
    assert sorted(path.name for path in real.iterdir()) == ["absolute", "chain", "relative"]


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OperatorError, match="Too many levels of symbolic links"):
        open_log(tmp_path / "one" / "log")


def test_file_on_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match=r"cannot open .*: Not a directory"):
        open_log(tmp_path / "file" / "log")


@as_root
@pytest.mark.parametrize("deep", [False, True])
def test_link_that_another_user_made_is_not_followed_by_root(tmp_path: Path, deep: bool) -> None:
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    (victim / "deep").mkdir(parents=True)
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "link").symlink_to(victim)
    os.lchown(shared / "link", NOBODY.pw_uid, NOBODY.pw_gid)
    path = shared / "link" / ("deep/log" if deep else "log")
    with pytest.raises(
        OperatorError, match=r"'link' in it is a symbolic link that another user made"
    ) as caught:
        open_log(path)
    assert caught.value.code == os.EX_CANTCREAT
    assert list(victim.rglob("log")) == []


@as_root
def test_world_writable_directory_anywhere_on_the_way_is_refused_by_root(tmp_path: Path) -> None:
    """Any user could put another directory in the place of the one below it."""
    below = tmp_path / "open" / "below"
    below.mkdir(parents=True)
    below.parent.chmod(0o777)
    with pytest.raises(OperatorError, match=f"is world-writable; chmod o-w {below.parent}"):
        open_log(below / "log")


@as_root
@pytest.mark.parametrize("mode", [0o1777, 0o775])
def test_file_that_another_user_made_beforehand_is_refused(tmp_path: Path, mode: int) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    path = shared / "log"
    path.touch()
    os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    with pytest.raises(OperatorError, match=f"it belongs to another user \\(uid {NOBODY.pw_uid}\\)"):
        open_log(path)
    os.close(open_regular(str(path), os.O_WRONLY, 0o600, owners=[NOBODY.pw_uid]))
    os.chown(path, 0, 0)
    open_log(path)


@as_root
def test_file_of_the_owner_of_its_directory_is_accepted(tmp_path: Path) -> None:
    """As in a directory that a container shares with its host."""
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "log").touch()
    for path in (volume, volume / "log"):
        os.chown(path, 1000, 1000)
    open_log(volume / "log")
