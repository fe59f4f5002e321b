"""Source as a syntax tree: what of it counts for identity, and which names it uses."""

from __future__ import annotations

import ast
import importlib
import inspect
import symtable
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class _WithoutTexts(ast.NodeTransformer):
    """Drops docstrings, also those under fields: texts that are statements of their own."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """Anything but a text stays."""
        constant = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if constant else node


def parsed(source: str) -> ast.Module:
    """The tree of a source text without docstrings; comments and formatting are no part of it."""
    tree: ast.Module = _WithoutTexts().visit(ast.parse(textwrap.dedent(source)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            node.body = node.body or [ast.Pass()]
    return tree


def module_tree(module: types.ModuleType) -> ast.Module:
    """The tree of a module's file; of nothing for a module without one."""
    file = getattr(module, "__file__", None)
    return parsed(Path(file).read_text() if file else "")


def tree_of(thing: types.FunctionType | type) -> ast.AST | None:
    """The tree of a function's or class's own source; None where it cannot be told apart.

    A decorated function is its wrapper here; what is wrapped lies in the wrapper's closure.
    """
    code = thing.__code__ if isinstance(thing, types.FunctionType) else thing
    try:
        tree = parsed(inspect.getsource(code))
    except (OSError, TypeError, SyntaxError):
        return None  # typed into a prompt, or a lambda inside a larger expression
    if thing.__name__ != "<lambda>":
        return tree
    # The line around a lambda is not its source, and of two in one line either could be meant.
    lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
    return lambdas[0] if len(lambdas) == 1 else None


def bytecode(code: types.CodeType) -> list[Any]:
    """What a code object does, without addresses in memory."""
    inner = [bytecode(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), inner]


def bytecode_names(code: types.CodeType) -> set[str]:
    """Every name that a code object and those inside it look up."""
    names = {*code.co_names, *code.co_freevars}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= bytecode_names(constant)
    return names


def names(tree: ast.AST) -> set[str]:
    """Every plain name in a tree."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def looked_up(tree: ast.AST) -> set[str]:
    """Every name that a tree looks up outside itself: not its arguments, not what it assigns.

    So a function of the file that happens to have the name of a local variable is none of it.
    """
    try:
        tables = [symtable.symtable(ast.unparse(tree), "source", "exec")]
    except SyntaxError:
        return names(tree)  # a `nonlocal` without the function around it
    found: set[str] = set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        inside = table.get_type() == "function"  # else names may be the file's: defaults, fields
        for symbol in table.get_symbols():
            if symbol.is_global() if inside else symbol.is_referenced():
                found.add(symbol.get_name())
    return found


def attributes(tree: ast.AST, name: str) -> set[tuple[str, ...]]:
    """What follows a name: `a.b.c` gives ("b",) and ("b", "c"); () where it stands alone."""
    chains: list[tuple[str, ...]] = []
    for node in ast.walk(tree):
        chain: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            chain.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and inner.id == name:
            chains.append(tuple(chain))
    alone = chains.count(()) > sum(len(chain) == 1 for chain in chains)
    return {chain for chain in chains if chain} | ({()} if alone else set())


def imports(tree: ast.AST, home: str) -> Iterator[tuple[str, str, str | None]]:
    """(bound name, module, what of it; None for the module itself) of every import in a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield alias.asname or top, alias.name if alias.asname else top, None
        elif isinstance(node, ast.ImportFrom):
            source = _imported_from(node, home)
            for alias in node.names:
                yield alias.asname or alias.name, source, alias.name


def _imported_from(node: ast.ImportFrom, home: str) -> str:
    """The full name of the module behind `from`, also of a relative one."""
    package = home.split(".")[: -node.level] if node.level else []
    if node.level and hasattr(sys.modules.get(home), "__path__"):
        package = home.split(".")[: len(home.split(".")) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


class _WithoutPlaces(ast.NodeTransformer):
    """Drops from imports in which of the user's files the thing lies; what it is counts elsewhere."""

    def __init__(self, home: str, own: Callable[[str], bool]) -> None:
        self.home, self.own = home, own

    def visit_Import(self, node: ast.Import) -> ast.Import:
        """`import place as name` is `import name`; without `as`, the place is the name."""
        for alias in node.names:
            if alias.asname and self.own(alias.name):
                alias.name, alias.asname = alias.asname, None
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        """`from place import name` is `from . import name`."""
        if self.own(_imported_from(node, self.home)):
            node.module, node.level = None, 1
        return node


def without_places(tree: ast.AST, home: str, own: Callable[[str], bool]) -> ast.AST:
    """The tree of code in module `home`, the same wherever in the user's files (`own`) that lies
    which it imports. The tree itself is changed."""
    placeless: ast.AST = _WithoutPlaces(home, own).visit(tree)
    return placeless


def imported(module: str, part: str | None) -> Any:
    """What an import statement binds; ImportError or AttributeError where it would fail."""
    found = importlib.import_module(module)
    if part is None:
        return found
    if not hasattr(found, part):
        return importlib.import_module(f"{module}.{part}")
    return getattr(found, part)


def closure(function: Callable[..., Any]) -> dict[str, Any]:
    """The values of a function's free names; those not yet bound are left out."""
    found = {}
    if isinstance(function, types.FunctionType):
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                found[name] = cell.cell_contents
            except ValueError:
                continue
    return found
