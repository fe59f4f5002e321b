"""The identity of code that moves between the user's files, and of names that only look like its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillroom.storage.code import code_digest
from tests.stages.code_builders import Load, module_loader


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Writes a module and imports it."""
    return module_loader(tmp_path, monkeypatch)


PARTS = """
from dataclasses import dataclass
from enum import Enum
LIMIT = 4
class Kind(Enum):
    ONE = 1
@dataclass(frozen=True)
class Pair:
    one: int = LIMIT
    def total(self):
        return near(self.one)
def near(x):
    return x + LIMIT
"""
USER = """
def use(x):
    return near(x), Pair(2).total(), Kind.ONE
def late(x):
    from {place} import near as close
    import {place} as other
    return close(x) + other.near(x)
"""


@pytest.mark.parametrize("name", ["use", "late"])
def test_what_moves_to_another_file_is_the_same(load: Load, name: str) -> None:
    """One file; the parts in a second one; the second one renamed."""
    prints = {code_digest(getattr(load(source=PARTS + USER.format(place="one"), name="one"), name))}
    for place in ("parts", "pieces"):
        load(source=PARTS, name=place)
        taken = f"from {place} import Kind, Pair, near\n"
        prints.add(code_digest(getattr(load(source=taken + USER.format(place=place)), name)))
    assert len(prints) == 1
    load(source=PARTS.replace("x + LIMIT", "x - LIMIT"), name="pieces")
    taken = "from pieces import Kind, Pair, near\n"
    changed = load(source=taken + USER.format(place="pieces"))
    assert code_digest(getattr(changed, name)) not in prints


def test_a_type_that_only_checkers_import_counts_otherwise(load: Load) -> None:
    """The known exception: as the module's docstring says."""
    checked = (
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
        "{}def f(x: Path):\n    return x\n"
    )
    here = load(source=checked.format("from pathlib import Path\n"))
    there = load(source=checked.format("if TYPE_CHECKING:\n    from pathlib import Path\n"))
    assert code_digest(here.f) != code_digest(there.f)


LOCALS = """
def f(rows, *, size=3):
    total = [row for row in rows if row]
    with open(rows) as file, open(rows) as (one, *rest):
        for index, value in enumerate(file):
            total.append(value)
    if (last := total):
        pass
    def inner(scale):
        return scale + size
    try:
        inner(last)
    except OSError as error:
        return error, one, rest
    match rows:
        case [first, *others] | {"a": first, **others}:
            return lambda near: near + first
    return others
"""


@pytest.mark.parametrize(
    "name",
    [
        *("rows", "size", "total", "row", "file", "one", "rest", "index", "value", "last"),
        *("inner", "scale", "error", "first", "others", "near"),
    ],
)
def test_a_function_with_the_name_of_a_local_variable_is_none_of_it(load: Load, name: str) -> None:
    more = f"def {name}(x):\n    return x\n"
    assert code_digest(load(source=more + LOCALS).f) == code_digest(load(source=LOCALS).f)


@pytest.mark.parametrize(
    "use",
    [
        "def f(x):\n    return g(x)",
        "def f(x, by=g):\n    return by(x)",
        "def f(x):\n    def inner():\n        return g(x)\n    return inner()",
        "def f(x):\n    return [g(y) for y in x]",
        "def f(x):\n    return (lambda g=g: g(x))()",
        "def f(x):\n    global g\n    g = g\n    return x",
        "class f:\n    g = g",
        "class f:\n    def __call__(self, x):\n        return g(x)",
        "class f:\n    g = 1\n    def __call__(self, x):\n        return g(x)",
        "f = lambda x: g(x)",
        "def outer(n=0):\n    def f(x):\n        nonlocal n\n        n += g(x)\n    return f\nf = outer()",
        "@g\ndef inner(x):\n    return x\ndef f(x):\n    return inner(x)",
    ],
)
def test_a_function_of_the_file_counts_however_it_is_reached(load: Load, use: str) -> None:
    other = "def g(x):\n    return {}\n"
    prints = {
        code_digest(load(source=other.format(body) + use + "\n").f)
        for body in ("x", "x if x else None")
    }
    assert len(prints) == 2
