"""The identity of code: what a function computes, not how its file is laid out or where it lies.

A function's identity covers its own source, without comments, docstrings and formatting, and that of
every function, class and constant of the user's code it refers to. Installed packages and stillroom
itself count by version, not by source.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import inspect
import sys
import sysconfig
import textwrap
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
        self._labels: dict[tuple[str, str], str] = {}

    def value(self, thing: Any) -> Any:
        """The spelling of a value; functions and classes are collected by name."""
        if isinstance(thing, functools.partial):
            keywords = {name: self.value(value) for name, value in thing.keywords.items()}
            arguments = [self.value(value) for value in thing.args]
            return {"partial": self.value(thing.func), "args": arguments, "keywords": keywords}
        if isinstance(thing, types.FunctionType | type):
            return self._named(thing)
        if isinstance(thing, list | tuple):
            return [self.value(item) for item in thing]
        if isinstance(thing, Mapping):
            return {str(key): self.value(value) for key, value in thing.items()}
        if isinstance(thing, types.BuiltinFunctionType):
            return f"builtin {thing.__name__}"
        if isinstance(thing, types.ModuleType):
            return self._module(thing)
        if hasattr(thing, "__dataclass_fields__"):
            fields = {n: self.value(getattr(thing, n)) for n in thing.__dataclass_fields__}
            return {"type": type(thing).__qualname__, "fields": fields}
        try:
            return canonical(thing)
        except (TypeError, ValueError):
            raise TypeError(
                f"{thing!r} ({type(thing).__name__}) has no stable identity, so a change of it could "
                "not be noticed. Use a module-level function, or functools.partial of one over plain "
                "values"
            ) from None

    def _named(self, thing: Callable[..., Any] | type) -> str:
        if not _counts_by_source(thing.__module__):
            return f"{thing.__module__}.{thing.__qualname__} of {_distribution(thing.__module__)}"
        label = self._label(thing.__module__, thing.__qualname__)
        if label not in self.found:
            self.found[label] = None  # entered first: functions may call each other
            tree = _tree(thing)
            source = ast.unparse(tree) if tree is not None else _bytecode(thing)
            uses = {} if tree is None else self._references(thing, tree)
            self.found[label] = {"source": source, "uses": uses}
        return label

    def _label(self, module: str, name: str) -> str:
        """The bare name, so that a renamed file changes nothing; numbered where two share one."""
        if (module, name) not in self._labels:
            same = sum(known == name for _, known in self._labels)
            self._labels[module, name] = f"{name}#{same}" if same else name
        return self._labels[module, name]

    def _references(self, thing: Callable[..., Any] | type, tree: ast.Module) -> dict[str, Any]:
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        scope: dict[str, Any] = dict(vars(sys.modules[thing.__module__]))
        if isinstance(thing, types.FunctionType):
            cells = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
            scope = {**thing.__globals__, **{name: cell.cell_contents for name, cell in cells}}
        uses: dict[str, Any] = {}
        for name in sorted(names & scope.keys()):
            if scope[name] is thing or name.startswith("__"):
                continue
            try:
                uses[name] = self.value(scope[name])
            except TypeError:
                # An object in the module's scope (a logger, a tensor): known by its type only.
                uses[name] = f"object {type(scope[name]).__qualname__}"
        return uses

    def _module(self, module: types.ModuleType) -> str:
        file = getattr(module, "__file__", None)
        ours = module.__name__.startswith("stillroom.")
        if ours or file is None or not _counts_by_source(module.__name__):
            return f"module {module.__name__}"
        label = self._label(module.__name__, f"module {module.__name__.rpartition('.')[2]}")
        if label not in self.found:
            self.found[label] = ast.unparse(_without_docstrings(Path(file)))
        return label


_OWN_METHODS = tuple(
    f"stillroom.{name}"
    for name in ("stages.objectives", "stages.heads", "stages.recipes", "workflows.digits")
)
"""stillroom's own code that is part of what a student learns, and so counts by source."""


@functools.cache
def _counts_by_source(module: str) -> bool:
    """The user's own code does; installed packages, and stillroom's machinery, count by version."""
    top = module.split(".")[0]
    if top == "stillroom" or top in sys.stdlib_module_names - {"__main__"}:
        return module.startswith(_OWN_METHODS)
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or not str(Path(file).resolve()).startswith(_INSTALLED)


@functools.cache
def _distribution(module: str) -> str:
    top = module.split(".")[0]
    if top in sys.stdlib_module_names:
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    try:
        return f"{top} {importlib.metadata.version(top)}"
    except importlib.metadata.PackageNotFoundError:
        # Slow: it reads the file lists of all installed packages.
        names = importlib.metadata.packages_distributions().get(top, [top])
        return " ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _without_docstrings(source: Path | str) -> ast.Module:
    tree = ast.parse(source.read_text() if isinstance(source, Path) else source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef | ast.Module):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def _tree(thing: Callable[..., Any] | type) -> ast.Module | None:
    try:
        return _without_docstrings(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, TypeError, SyntaxError):
        return None  # typed into a prompt, or a lambda inside a larger expression


def _bytecode(thing: Callable[..., Any] | type) -> str:
    if isinstance(thing, types.FunctionType):
        code = thing.__code__
        return f"{code.co_code.hex()} {code.co_names} {code.co_consts!r}"
    raise TypeError(
        f"the source of {thing.__qualname__} cannot be found, so a change of it could not be noticed; "
        "put it in a file"
    )
