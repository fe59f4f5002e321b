"""The identity of code changes when what it computes can change, and with nothing else."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.storage.code import code_digest, code_identity
from tests.ids import without_addresses
from tests.stages.code_builders import Load, module_loader

BASE = '''
import functools
import math
import time
from dataclasses import dataclass
import numpy as np
import torch
from torch import nn

SCALE = 2.0
MEAN = np.array([0.5, 0.25])
WEIGHT = torch.tensor([1.0, 2.0])
NAMES = {"a", "b"}

def shifted(x):
    return x + 1

@functools.cache
def table(n):
    return n * 3

def twice(function):
    @functools.wraps(function)
    def wrapper(x):
        return function(function(x))
    return wrapper

@dataclass(frozen=True)
class Plan:
    """What to do."""
    width: int = 3
    """How wide."""
    def __call__(self):
        return self.width

class Net(nn.Module):
    def forward(self, x):
        return shifted(x)

def even(n):
    return n == 0 or odd(n - 1)

def odd(n):
    return n != 0 and even(n - 1)

def scaled(x, by=SCALE):
    """Scales."""
    return x * by  # by a number

def closed(factor):
    def inner(x, bias=factor * 2):
        return x * factor + bias
    return inner

@torch.no_grad()
def quiet(x):
    return shifted(x)

@twice
def doubled(x):
    return shifted(x)

plus = lambda x: shifted(x) + 1
first, second = lambda x: x + 1, lambda x: x + 2

def every(x):
    time.sleep(0), math.exp(0)
    return [scaled(x), MEAN, WEIGHT, NAMES, table(x), Plan(), even(x), quiet(x), doubled(x), Net, plus]

def local(x):
    from torch import nn as unused
    from neighbour import near
    import neighbour as other
    return near(x) + other.far(x)
'''
NEIGHBOUR = "LIMIT = 4\ndef near(x):\n    return x\ndef far(x):\n    return x * LIMIT\n"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Writes the base, with replacements, and imports it under a name of its own."""
    return partial(module_loader(tmp_path, monkeypatch), source=BASE)


def test_a_moved_or_renamed_file_changes_nothing(load: Load) -> None:
    assert code_digest(load(name="here").every) == code_digest(load(name="there").every)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # by a number", ""),
        ("return x * by", "return (x\n            * by)"),
        ('"""Scales."""', '"""Scales x\n    by a number."""'),
        ('    """Scales."""\n', ""),
        ('    """How wide."""\n', '    """Its width."""\n'),
        ("def shifted(x):\n", "def shifted(x):\n\n    # one more\n"),
        ('NAMES = {"a", "b"}', "NAMES = {'b',\n  'a'}"),
        ("def closed(factor):", "def unused():\n    return 5\n\ndef closed(factor):"),
        ("first, second =", "third, fourth ="),
    ],
)
def test_comments_docstrings_and_layout_change_nothing(load: Load, old: str, new: str) -> None:
    assert code_digest(load((old, new)).every) == code_digest(load().every)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return x + 1", "return x + 2"),
        ("SCALE = 2.0", "SCALE = 3.0"),
        ("by=SCALE", "by=5.0"),
        ("[0.5, 0.25]", "[0.5, 0.26]"),
        ("tensor([1.0, 2.0])", "tensor([1.0, 2.1])"),
        ('{"a", "b"}', '{"a", "c"}'),
        ("return n * 3", "return n * 4"),
        ("width: int = 3", "width: int = 4"),
        ("return self.width", "return -self.width"),
        ("function(function(x))", "function(x)"),
        ("return n != 0 and even", "return n > 0 and even"),
        ("class Net(nn.Module):\n", "class Net(nn.Module):\n    deep = True\n"),
        ("plus = lambda x: shifted(x) + 1", "plus = lambda x: shifted(x) + 2"),
    ],
)
def test_a_change_of_anything_it_refers_to_changes_it(load: Load, old: str, new: str) -> None:
    assert code_digest(load((old, new)).every) != code_digest(load().every)


@pytest.mark.parametrize("name", ["quiet", "doubled", "plus", "Net"])
def test_what_lies_behind_a_decorator_a_lambda_or_a_class_counts(load: Load, name: str) -> None:
    changed = load(("return x + 1", "return x + 2"))
    assert code_digest(getattr(changed, name)) != code_digest(getattr(load(), name))


def test_closures_count_by_what_they_hold(load: Load) -> None:
    module = load()
    assert code_digest(module.closed(2)) == code_digest(load().closed(2))
    assert code_digest(module.closed(2)) != code_digest(module.closed(3))
    pairs = [partial(max, module.closed(a), module.closed(b)) for a, b in [(2, 3), (2, 4), (3, 2)]]
    assert len({code_digest(pair) for pair in pairs}) == 3


def test_two_lambdas_of_one_line_are_two_functions(load: Load) -> None:
    module = load()
    assert code_digest(module.first) != code_digest(module.second)
    assert code_digest(partial(max, module.first, module.second)) != code_digest(
        partial(max, module.first, module.first)
    )


def test_arguments_of_partials_count(load: Load) -> None:
    module = load()
    prints = [
        code_digest(partial(module.scaled, by=2)),
        code_digest(partial(module.scaled, by=3)),
        code_digest(partial(module.scaled, 2)),
        code_digest(partial(partial(module.scaled, 2), by=2)),
        code_digest(partial(module.scaled, by=float("inf"))),
        code_digest(partial(module.scaled, by=module.Plan(3))),
        code_digest(partial(module.scaled, by=module.Plan(4))),
        code_digest(partial(module.scaled, by="2")),
        code_digest(module.scaled),
    ]
    assert len(set(prints)) == len(prints)


def test_the_code_of_a_callable_dataclass_counts(load: Load) -> None:
    changed = load(("return self.width", "return self.width + 1"))
    assert code_digest(changed.Plan(5)) != code_digest(load().Plan(5))


def test_imports_inside_a_function_count(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints = set()
    for old, new in [("4", "4"), ("4", "5"), ("return x\n", "return -x\n")]:
        neighbour = NEIGHBOUR.replace(old, new)
        monkeypatch.setitem(sys.modules, "neighbour", load(source=neighbour, name="neighbour"))
        prints.add(code_digest(load().local))
    assert len(prints) == 3


def test_only_what_is_taken_of_a_module_counts(load: Load) -> None:
    user = "import neighbour\ndef use(x):\n    return neighbour.far(x)\n"
    prints = []
    for old, new in [("4", "4"), ("return x\n", "return -x\n"), ("4", "5")]:
        load(source=NEIGHBOUR.replace(old, new, 1), name="neighbour")
        prints.append(code_digest(load(source=user).use))
    assert prints[0] == prints[1] != prints[2]


def test_installed_code_counts_by_its_version() -> None:
    import torch

    identity = code_identity(torch.nn.Linear)
    assert identity["root"].startswith("torch.nn.modules.linear.Linear of torch 2")
    assert identity["code"] == {}
    assert "+" not in identity["root"]  # one cache for the builds for CPU and GPU


def test_a_module_that_is_used_names_its_version(load: Load) -> None:
    module = load(source="import numpy as np\ndef f(x):\n    return np.exp(x)\n")
    import numpy as np

    assert code_identity(module.f)["code"]["f"]["uses"] == {
        "np": f"module numpy of numpy {np.__version__}"
    }


@pytest.mark.parametrize(
    "thing",
    [{}.get, [].append, object(), "text".join, partial(max, object()), Path("x").exists],
    ids=without_addresses,
)
def test_what_has_state_or_no_identity_is_refused(thing: object) -> None:
    with pytest.raises(TypeError, match="no stable identity"):
        code_identity(thing)


def test_a_class_without_source_is_refused(load: Load) -> None:
    module = load(source="Made = type('Made', (), {})\n")
    with pytest.raises(TypeError, match="put it in a file"):
        code_identity(module.Made)


def test_containers_that_hold_themselves_end(load: Load) -> None:
    module = load(source="A = []\nA.append(A)\ndef f():\n    return A\n")
    assert code_identity(module.f)["code"]["f"]["uses"]["A"] == {
        "object of": code_identity(list)["root"]
    }


def test_the_identity_is_the_same_in_another_process(load: Load, tmp_path: Path) -> None:
    module = load(name="shared")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import shared\n"
        "from stillroom.storage.code import code_digest as d\n"
        "print(d(shared.every), d(shared.first), d(shared.closed(2)))"
    )
    folder = str(Path(str(module.__file__)).parent)
    found = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True, check=True
    ).stdout.split()
    here = [module.every, module.first, module.closed(2)]
    assert found == [code_digest(thing) for thing in here]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@settings(deadline=None)
@given(plain, plain)
def test_values_share_an_identity_only_when_they_are_equal(one: object, other: object) -> None:
    same = code_digest(partial(max, one)) == code_digest(partial(max, other))
    assert same == (repr_sorted(one) == repr_sorted(other))


def repr_sorted(value: object) -> str:
    """A spelling that tells 1 from 1.0 and does not see the order of keys."""
    if isinstance(value, dict):
        return f"dict{sorted((k, repr_sorted(v)) for k, v in value.items())}"
    return f"list{list(map(repr_sorted, value))}" if isinstance(value, list) else repr(value)
