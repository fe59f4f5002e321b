"""The identity of code: what a function computes, not how its file is laid out or where it lies.

A function's identity covers its own source, without comments, docstrings and formatting, and that of
every function, class and constant of the user's code it refers to, also by an import inside it.
Installed packages and stillroom itself count by version, not by source.

So a renamed file changes nothing, nor does a function or class that moves to another file of the
user's, as long as it is called by the same name and there the names in it stand for the same. They do
not where one file imports a type when it runs and the other for type checkers only: an annotation
counts as what its names are, because decorators and compilers read it. What is called through its file
(`helpers.f`) changes with the file's name, and what moves into an installed package counts by version
from then on.
"""

from __future__ import annotations

import ast
import enum
import functools
import hashlib
import importlib.metadata
import importlib.util
import re
import sys
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.storage import source
from stillroom.storage.identity import canonical, digest

_INSTALLED = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")
)


def code_digest(thing: Any) -> str:
    """SHA-256 of a function's, class's or partial's identity (see `code_identity`)."""
    return digest(code_identity(thing))


def code_identity(thing: Any) -> dict[str, Any]:
    """Everything of the user's code that decides what `thing` computes, as plain JSON.

    Raises TypeError for what has no stable identity, such as a bound method of an object with
    state: use a module-level function, or functools.partial of one over plain values.
    """
    visit = _Visit()
    root = visit.value(thing)
    return {"root": root, "code": visit.found}


class _Visit:
    """Walks from one value to all code that it refers to."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        # By object: two closures or two lambdas of one module may share their name.
        self._labels: dict[int, tuple[Any, str, str]] = {}

    def value(self, thing: Any) -> Any:
        """The spelling of a value; functions and classes are collected by name."""
        if isinstance(thing, functools.partial):
            keywords = {name: self.value(value) for name, value in thing.keywords.items()}
            arguments = [self.value(value) for value in thing.args]
            return {"partial": self.value(thing.func), "args": arguments, "keywords": keywords}
        if isinstance(thing, types.FunctionType | type):
            return self._named(thing)
        if isinstance(thing, types.ModuleType):
            return self._module(thing)
        if isinstance(thing, enum.Enum):
            return {"enum": self._named(type(thing)), "name": thing.name}
        if isinstance(thing, list | tuple):
            return [self.value(item) for item in thing]
        if isinstance(thing, set | frozenset):
            return {"set": sorted(canonical(self.value(item)) for item in thing)}
        if isinstance(thing, Mapping):
            return {str(key): self.value(value) for key, value in thing.items()}
        if hasattr(thing, "__dataclass_fields__"):
            fields = {n: self.value(getattr(thing, n)) for n in thing.__dataclass_fields__}
            return {"type": self._named(type(thing)), "fields": fields}
        if (spelled := _callable(thing, self)) is None and (spelled := _plain(thing)) is None:
            raise TypeError(
                f"{thing!r} ({type(thing).__name__}) has no stable identity, so a change of it could "
                "not be noticed. Use a module-level function, or functools.partial of one over plain "
                "values"
            )
        return spelled

    def _named(self, thing: types.FunctionType | type) -> str:
        module = thing.__module__ or "builtins"
        if not _counts_by_source(module):
            return f"{module}.{thing.__qualname__} of {_distribution(module)}"
        label, known = self._label(thing, thing.__qualname__)
        if not known:
            self.found[label] = None  # entered first: functions may call each other
            self.found[label] = self._described(thing)
        return label

    def _label(self, thing: Any, name: str) -> tuple[str, bool]:
        """The bare name, so that a renamed file changes nothing; numbered where several share one."""
        known = id(thing) in self._labels
        if not known:
            same = sum(name == other for _, other, _ in self._labels.values())
            label = f"{name}#{same}" if same else name
            # The object is kept: another one could get its id.
            self._labels[id(thing)] = (thing, name, label)
        return self._labels[id(thing)][2], known

    def _described(self, thing: types.FunctionType | type) -> dict[str, Any]:
        tree = source.tree_of(thing)
        described: dict[str, Any] = {}
        if isinstance(thing, types.FunctionType):
            values = [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
            if values:
                described["defaults"] = [self._soft(value) for value in values]
            scope = {**thing.__globals__, **source.closure(thing)}
        elif tree is None:
            raise TypeError(
                f"the source of {thing.__qualname__} cannot be found, so a change of it could not be "
                "noticed; put it in a file"
            )
        else:
            scope = dict(vars(sys.modules.get(thing.__module__, types.ModuleType(""))))
            for method in vars(thing).values():
                scope |= source.closure(method)  # of a class made inside a function
        if tree is not None:
            described["uses"] = self._uses(thing, tree, scope)
            placeless = source.without_places(tree, str(thing.__module__), _is_there)
            described["source"] = ast.unparse(placeless)
        elif isinstance(thing, types.FunctionType):
            described["source"] = source.bytecode(thing.__code__)
            used = sorted(source.bytecode_names(thing.__code__) & scope.keys())
            described["uses"] = {name: self._soft(scope[name]) for name in used}
        return described

    def _uses(self, thing: Any, tree: ast.AST, scope: dict[str, Any]) -> dict[str, Any]:
        """What the names in a piece of source stand for."""
        uses: dict[str, Any] = {}
        meant = source.looked_up(tree)
        for name, module, part in source.imports(tree, str(thing.__module__)):
            if not _counts_by_source(module):
                uses[f"import {name}"] = f"{module}.{part} of {_distribution(module)}"
                continue
            try:
                scope[name] = source.imported(module, part)
                meant |= {name} & source.names(tree)
            except (ImportError, AttributeError):
                uses[f"import {name}"] = f"{module}.{part}, which cannot be imported"
        for name in sorted(meant & scope.keys()):
            found = scope[name]
            if found is thing or (name.startswith("__") and name.endswith("__")):
                continue
            if isinstance(found, types.ModuleType) and _counts_by_source(found.__name__):
                for chain in sorted(source.attributes(tree, name)):
                    self._taken(uses, name, found, chain)
            else:
                uses[name] = self._soft(found)
        return uses

    def _taken(self, uses: dict[str, Any], name: str, found: Any, chain: tuple[str, ...]) -> None:
        """What `name.a.b` takes of a module of the user's: down to the first thing that is none."""
        for part in chain:
            if not isinstance(found, types.ModuleType) or not hasattr(found, part):
                return
            found, name = getattr(found, part), f"{name}.{part}"
        if not chain or not isinstance(found, types.ModuleType):
            uses[name] = self._soft(found)

    def _soft(self, thing: Any) -> Any:
        """A value in a scope: one without identity (a logger, a model) is known by its type only."""
        try:
            return self.value(thing)
        except (TypeError, RecursionError):
            try:
                return {"object of": self._named(type(thing))}
            except TypeError:
                return f"object {type(thing).__qualname__}"

    def _module(self, module: types.ModuleType) -> str:
        if not _counts_by_source(module.__name__):
            return f"module {module.__name__} of {_distribution(module.__name__)}"
        label, known = self._label(module, f"module {module.__name__.rpartition('.')[2]}")
        if not known:
            self.found[label] = ast.unparse(source.module_tree(module))
        return label


def _callable(thing: Any, visit: _Visit) -> Any:
    """Callables that are neither functions nor classes; None for those with state."""
    if isinstance(thing, types.BuiltinFunctionType):
        stateless = thing.__self__ is None or isinstance(thing.__self__, types.ModuleType | type)
        return f"builtin {thing.__qualname__}" if stateless else None
    if isinstance(thing, types.MethodType):
        if not isinstance(thing.__self__, type):
            return None
        return {"of": visit.value(thing.__self__), "class method": thing.__name__}
    if isinstance(getattr(thing, "__wrapped__", None), types.FunctionType):
        return {"wrapper": type(thing).__qualname__, "of": visit.value(thing.__wrapped__)}
    if isinstance(thing, np.ufunc):
        return f"ufunc {thing.__name__}"
    return None


def _plain(thing: Any) -> Any:
    """Values without code; None for what is none."""
    if isinstance(thing, np.ndarray) and thing.dtype.kind in "biufcSU":
        content = hashlib.sha256(np.ascontiguousarray(thing).tobytes()).hexdigest()
        return {"array": [thing.dtype.str, list(thing.shape), content]}
    if hasattr(thing, "detach") and hasattr(thing, "is_floating_point"):
        # Every narrower floating-point format, also those numpy lacks, fits float64 exactly.
        wide = thing.detach().cpu().double() if thing.is_floating_point() else thing.cpu()
        return {"tensor": str(thing.dtype), "of": _plain(wide.numpy())}
    if isinstance(thing, np.generic):
        return {"scalar": [thing.dtype.str, thing.tobytes().hex()]}
    if isinstance(thing, bytes):
        return {"bytes": thing.hex()}
    if isinstance(thing, re.Pattern):
        return {"pattern": str(thing.pattern), "flags": thing.flags}
    named = type(thing).__name__ in ("dtype", "device") or isinstance(thing, np.dtype)
    if named or isinstance(thing, complex | range | slice | types.EllipsisType):
        return repr(thing)
    if isinstance(thing, float) and not np.isfinite(thing):
        return repr(thing)
    try:
        return canonical(thing)
    except (TypeError, ValueError):
        return None


_OWN_METHODS = tuple(
    f"stillroom.{name}"
    for name in (
        *("stages.deriving.methods", "stages.objectives", "stages.heads", "stages.recipes"),
        "stages.proving",
        "stages.views",
        "workflows.digits",
    )
)
"""stillroom's own code that is part of what a student learns or sees, and so counts by source."""


def _counts_by_source(module: str) -> bool:
    """The user's own code does; installed packages, and stillroom's machinery, count by version."""
    top = module.partition(".")[0]
    if top == "stillroom":
        return module.startswith(_OWN_METHODS)
    file = getattr(sys.modules.get(module), "__file__", None)
    file = file or _file_of(top)
    if file is None:
        return top not in sys.stdlib_module_names and top != "builtins"
    return not str(Path(file).resolve()).startswith(_INSTALLED)


def _is_there(module: str) -> bool:
    """Whether a module is the user's and was imported, so that what is taken of it counts."""
    return module in sys.modules and _counts_by_source(module)


@functools.cache
def _file_of(top: str) -> str | None:
    """Where a top-level package or module lies, without importing it."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin in ("built-in", "frozen"):
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), None)


@functools.cache
def _distribution(module: str) -> str:
    """Package and version; without the build after a plus, as one cache serves CPU and GPU."""
    top = module.split(".")[0]
    if top in sys.stdlib_module_names:
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    try:
        names = [top] if importlib.metadata.version(top) else []
    except importlib.metadata.PackageNotFoundError:
        # Slow: it reads the file lists of all installed packages.
        names = importlib.metadata.packages_distributions().get(top, [])
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in sorted(names)}
    return " ".join(f"{name} {version}" for name, version in versions.items()) or top
