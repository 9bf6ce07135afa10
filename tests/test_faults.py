"""The faults of `faults/`, in trials of seconds: what a loaded machine excuses is left to `make faults`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.faults.row import Row, Trial, table
from tests.program import ROOT

QUICK = [row for row in table().values() if row.quick]


@pytest.mark.parametrize("row", QUICK, ids=[row.id for row in QUICK])
def test_it_keeps_standing(row: Row, tmp_path: Path) -> None:
    if row.root and os.geteuid() != 0:
        pytest.skip("only root has privileges to drop")
    trial = Trial(tmp_path, full=False)
    row.measure(trial)
    assert trial.figures
    assert [str(figure) for figure in trial.figures if not figure.sound] == []


def test_every_row_says_how_it_is_measured() -> None:
    assert all(row.how for row in table().values())


def test_the_document_names_what_there_is() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    transcripts = re.findall(r"`(\w+/\w+\.txt)`", text)
    tests = re.findall(r"`(test_\w+\.py)::(\w+)`", text)
    assert len(transcripts) > 30
    assert len(tests) > 30
    assert [one for one in transcripts if not (ROOT / "tests" / "transcripts" / one).is_file()] == []
    assert [one for one in tests if f"def {one[1]}(" not in (ROOT / "tests" / one[0]).read_text()] == []
    assert set(re.findall(r"\b[GLS]\d+\b", text)) >= table().keys()
