"""The source of the settings: what a reload reads again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blackhole.process.settings_source import SettingsSource
from blackhole.settings import OperatorError

pytestmark = pytest.mark.pure


def test_reload_reads_the_conf_file_in_the_directory_of_the_start(tmp_path: Path) -> None:
    (tmp_path / "my.conf").write_text("workers = 3\n")
    before = os.getcwd()
    invocation = SettingsSource(["--conf=my.conf"], {"BLACKHOLE_MODE": "bounce"}, str(tmp_path)).read()
    assert invocation.settings.workers == 3
    assert invocation.settings.listeners[0].mode == "bounce"
    assert os.getcwd() == before


def test_reload_fails_when_the_directory_of_the_start_was_removed(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=f"cannot enter {tmp_path}/none: No such file or directory"):
        SettingsSource([], {}, f"{tmp_path}/none").read()
