"""Modules made of a text, as the user's own files."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Load = Callable[..., ModuleType]


def module_loader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """`load(*replacements, source=, name=)` writes a module and imports it, each from its own folder."""
    count = 0
    monkeypatch.syspath_prepend(str(folder))

    def loaded(*replacements: tuple[str, str], source: str, name: str = "") -> ModuleType:
        nonlocal count
        count += 1
        for old, new in replacements:
            assert source.count(old) >= 1, old
            source = source.replace(old, new)
        name = name or f"made{count}"
        path = folder / f"folder{count}" / f"{name}.py"
        path.parent.mkdir()
        path.write_text(textwrap.dedent(source))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return loaded
