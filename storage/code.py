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
    found: dict[str, Any] = {}
    root = _visit(thing, found)
    return {"root": root, "code": found}


def _visit(thing: Any, found: dict[str, Any]) -> Any:
    """The spelling of a value; functions and classes are collected in `found` by name."""
    if isinstance(thing, functools.partial):
        keywords = {name: _visit(value, found) for name, value in thing.keywords.items()}
        arguments = [_visit(value, found) for value in thing.args]
        return {"partial": _visit(thing.func, found), "args": arguments, "keywords": keywords}
    if isinstance(thing, types.FunctionType | type):
        return _named(thing, found)
    if isinstance(thing, list | tuple):
        return [_visit(item, found) for item in thing]
    if isinstance(thing, Mapping):
        return {str(key): _visit(value, found) for key, value in thing.items()}
    if isinstance(thing, types.BuiltinFunctionType | types.ModuleType):
        return f"{type(thing).__name__} {thing.__name__}"
    if hasattr(thing, "__dataclass_fields__"):
        fields = {name: _visit(getattr(thing, name), found) for name in thing.__dataclass_fields__}
        return {"type": type(thing).__qualname__, "fields": fields}
    try:
        return canonical(thing)
    except (TypeError, ValueError):
        raise TypeError(
            f"{thing!r} ({type(thing).__name__}) has no stable identity, so a change of it could not "
            "be noticed. Use a module-level function, or functools.partial of one over plain values"
        ) from None


def _named(thing: Callable[..., Any] | type, found: dict[str, Any]) -> str:
    name = f"{thing.__module__}.{thing.__qualname__}"
    if not _is_user_code(thing):
        return f"{name} of {_distribution(thing.__module__)}"
    label = thing.__qualname__
    if label not in found:
        found[label] = None  # entered before its references: functions may call each other
        tree = _tree(thing)
        references = {} if tree is None else _references(thing, tree, found)
        source = ast.unparse(tree) if tree is not None else _bytecode(thing)
        found[label] = {"source": source, "uses": references}
    return label


def _is_user_code(thing: Callable[..., Any] | type) -> bool:
    module = sys.modules.get(thing.__module__)
    file = getattr(module, "__file__", None)
    if thing.__module__.split(".")[0] in ("stillroom", "builtins"):
        return thing.__module__.startswith(_OWN_METHODS)
    return file is None or not str(Path(file).resolve()).startswith(_INSTALLED)


_OWN_METHODS = (
    "stillroom.stages.objectives",
    "stillroom.stages.heads",
    "stillroom.stages.recipes",
    "stillroom.workflows.digits",
)
"""stillroom's own code that is part of what a student learns, and so counts by source."""


@functools.cache
def _distribution(module: str) -> str:
    top = module.split(".")[0]
    for name in (top, *importlib.metadata.packages_distributions().get(top, ())):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"python {sys.version_info.major}.{sys.version_info.minor}"


def _tree(thing: Callable[..., Any] | type) -> ast.Module | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, TypeError, SyntaxError):
        return None  # typed into a prompt, or a lambda inside a larger expression
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def _bytecode(thing: Callable[..., Any] | type) -> str:
    if isinstance(thing, types.FunctionType):
        code = thing.__code__
        return f"{code.co_code.hex()} {code.co_names} {code.co_consts!r}"
    raise TypeError(
        f"the source of {thing.__qualname__} cannot be found, so a change of it could not be noticed; "
        "put it in a file"
    )


def _references(
    thing: Callable[..., Any] | type, tree: ast.Module, found: dict[str, Any]
) -> dict[str, Any]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    scope: dict[str, Any] = dict(vars(sys.modules[thing.__module__]))
    if isinstance(thing, types.FunctionType):
        scope = dict(thing.__globals__)
        scope |= {
            name: cell.cell_contents
            for name, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
        }
    uses: dict[str, Any] = {}
    for name in sorted(names & scope.keys()):
        value = scope[name]
        if value is thing or name.startswith("__"):
            continue
        if isinstance(value, types.ModuleType):
            uses[name] = _module(value, found)
        else:
            try:
                uses[name] = _visit(value, found)
            except TypeError:
                # An object in the module's scope (a logger, a tensor): known by its type only.
                uses[name] = f"object {type(value).__qualname__}"
    return uses


def _module(module: types.ModuleType, found: dict[str, Any]) -> str:
    file = getattr(module, "__file__", None)
    if file is None or str(Path(file).resolve()).startswith(_INSTALLED):
        return f"module {module.__name__}"
    if module.__name__.split(".")[0] == "stillroom":
        return f"module {module.__name__}"
    label = f"module {module.__name__}"
    if label not in found:
        found[label] = ast.unparse(ast.parse(Path(file).read_text()))
    return label
