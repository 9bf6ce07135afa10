"""Opening files in directories where other users may write."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from blackhole.process.safe_open import open_regular
from blackhole.settings import OperatorError

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
