"""What docstrings show is true: the examples of every module that has some."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(("stillroom", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for top in ("storage", "stages", "pipeline", "workflows")
    for path in (ROOT / top).rglob("*.py")
    if ">>> " in path.read_text()
)


def test_there_are_modules_with_examples() -> None:
    assert len(MODULES) > 5


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_are_true(name: str) -> None:
    module = importlib.import_module(name)
    assert any(found.examples for found in doctest.DocTestFinder().find(module))
    failed, _ = doctest.testmod(module, extraglobs={"np": np}, optionflags=doctest.ELLIPSIS)
    assert failed == 0
