"""A compiled build: which modules it compiles, and that nobody gets one who has not asked for it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import pytest

from blackhole import usage
from blackhole.compiled_modules import COMPILED_MODULES, is_compiled, source_of
from tests.program import ROOT

pytestmark = pytest.mark.pure

COMPILED = os.environ.get("BLACKHOLE_TEST_COMPILED") == "1"
"""These tests run on a compiled build: see `make compiled`."""


def test_default_build_has_no_extension_modules() -> None:
    found = [path for suffix in EXTENSION_SUFFIXES for path in (ROOT / "blackhole").rglob(f"*{suffix}")]
    assert bool(found) is is_compiled() is COMPILED


def test_modules_of_the_table_exist_and_stand_in_order() -> None:
    assert list(COMPILED_MODULES) == sorted(set(COMPILED_MODULES))
    assert [module for module in COMPILED_MODULES if not (ROOT / source_of(module)).is_file()] == []


def test_only_pure_modules_are_compiled() -> None:
    assert {module.rpartition(".")[0] for module in COMPILED_MODULES} == {"blackhole.rules", "blackhole.smtp"}


def test_all_modules_of_a_compiled_build_are_compiled() -> None:
    origins = [str(spec.origin) for spec in map(find_spec, COMPILED_MODULES) if spec is not None]
    assert len(origins) == len(COMPILED_MODULES)
    assert {origin.endswith(".py") for origin in origins} == {not COMPILED}


def classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]


def test_classes_that_are_compiled_have_no_subclass_that_is_not() -> None:
    """A class of Python cannot be derived from one of an extension module; a NamedTuple stays in Python."""
    compiled = {ROOT / source_of(module) for module in COMPILED_MODULES}
    names = {
        node.name
        for path in compiled
        for node in classes(path)
        if not {"NamedTuple", "Protocol", "Enum"} & {ast.unparse(base) for base in node.bases}
    }
    derived = [
        f"{path.name}: {node.name}"
        for path in (ROOT / "blackhole").rglob("*.py")
        if path not in compiled
        for node in classes(path)
        if names & {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    ]
    assert derived == []


def test_compiled_classes_have_no_slots_made_by_dataclass() -> None:
    """`dataclass(slots=True)` makes a second class, which mypyc does not compile."""
    wrong = [
        node.name
        for module in COMPILED_MODULES
        for node in classes(ROOT / source_of(module))
        if any("slots=True" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]
    assert wrong == []


@pytest.mark.parametrize("compiled", [True, False])
def test_version_says_that_a_build_is_compiled(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    monkeypatch.setattr(usage, "is_compiled", lambda: compiled)
    first = usage.version_text().splitlines()[0]
    assert first.endswith(" (compiled)") is compiled


@pytest.mark.skipif(COMPILED, reason="the sources of the build are not here")
def test_editable_install_is_refused_where_a_compiled_build_is_asked_for() -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "editable_wheel"],
        cwd=ROOT,
        env=os.environ | {"BLACKHOLE_COMPILE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "an editable install is pure Python" in done.stderr
