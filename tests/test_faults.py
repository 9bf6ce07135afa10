"""The faults of `faults/`, in trials of seconds: what a loaded machine excuses is left to `make faults`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.row import Row, Trial, table

QUICK = [row for row in table().values() if row.quick]


@pytest.mark.parametrize("row", QUICK, ids=[row.id for row in QUICK])
def test_it_keeps_standing(row: Row, tmp_path: Path) -> None:
    trial = Trial(tmp_path, full=False)
    row.measure(trial)
    assert trial.figures
    assert [str(figure) for figure in trial.figures if not figure.sound] == []


def test_every_row_says_how_it_is_measured() -> None:
    assert all(row.how for row in table().values())
