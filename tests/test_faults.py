"""The faults of `faults/`, in trials of seconds; `make faults` measures times at full size."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.fault import Fault, Trial, all_faults
from tests.program import ROOT

TESTS = ROOT / "tests"
QUICK = [fault for fault in all_faults().values() if fault.quick]


@pytest.mark.parametrize("fault", QUICK, ids=[fault.id for fault in QUICK])
def test_program_withstands_a_fault(fault: Fault, tmp_path: Path) -> None:
    if fault.needs_root and os.geteuid() != 0:
        pytest.skip("only root can measure this fault")
    trial = Trial(tmp_path, full=False)
    fault.measure(trial)
    assert trial.figures
    assert [str(figure) for figure in trial.figures if not figure.is_plausible] == []


def test_every_fault_explains_how_it_is_measured() -> None:
    assert all(fault.method for fault in all_faults().values())


def test_tests_and_transcripts_named_in_the_document_exist() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    transcripts = re.findall(r"`(\w+/\w+\.txt)`", text)
    tests = re.findall(r"`(test_\w+\.py)::(\w+)`", text)
    assert len(transcripts) > 30
    assert len(tests) > 30
    assert [one for one in transcripts if not (TESTS / "transcripts" / one).is_file()] == []
    assert [one for one in tests if f"def {one[1]}(" not in (TESTS / one[0]).read_text()] == []
    assert set(re.findall(r"\b[GLS]\d+\b", text)) >= all_faults().keys()


def test_tests_that_faults_run_exist() -> None:
    strings = [
        node.value
        for path in (TESTS / "faults").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    names = [string for string in strings if re.fullmatch(r"test_\w+\.py(::\w+)?", string)]
    assert len(names) > 5
    for name in names:
        file, _, function = name.partition("::")
        assert f"def {function}" in (TESTS / file).read_text(), name


@pytest.mark.parametrize("module", ["tests.faults", "tests.fuzz", "tests.soak"])
def test_command_line_of_a_long_test_starts_without_pytest(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m {module}")
