"""The examples in docstrings run as they are written."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import blackhole

MODULES = [
    module.name
    for module in pkgutil.walk_packages(blackhole.__path__, "blackhole.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize(
    "name", ["blackhole.smtp.engine", "blackhole.smtp.session", "blackhole.rules.evaluator"]
)
def test_a_central_class_has_an_example(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).attempted > 0
