"""Real texts that every installation has: the docstrings of Python and of installed packages.

A row is a docstring's first paragraph (summary) and the first later paragraph of prose (details).
Which details belong to which summary is known from the source file, not from any model.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import platform
import re
import sysconfig
import zlib
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import ArrayRows
from stillroom.storage.errors import MissingPackageError
from stillroom.storage.files import read_json

PACKAGES = ("stdlib", "numpy", "torch", "ray", "dask", "zarr", "pydantic", "pyarrow")
BUCKETS, IDS, WORDS = 2**14, 96, 48
"""Hash buckets of the student (0 is padding), ids of a text, and the words they are made of."""
_LEFT_OUT = {"site-packages", "dist-packages", "tests", "test", "testing", "idlelib", "lib2to3"}
_LEFT_OUT |= {"_vendor", "thirdparty_files"}
_DEFINED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def version(package: str) -> str:
    """The installed version; decides whether the texts must be read again."""
    if package == "stdlib":
        return platform.python_version()
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise MissingPackageError(f"{package} is not installed: pip install {package}") from None


def docstrings(package: str) -> list[tuple[str, str, str]]:
    """(key, summary, details) of every docstring that has both; the source is parsed, not run."""
    found: list[tuple[str, str, str]] = []
    root = _folder(package)
    for file in sorted(root.rglob("*.py")):
        inside = file.relative_to(root)
        if _LEFT_OUT.isdisjoint(inside.parts):
            try:
                tree = ast.parse(file.read_text("utf-8"))
            except (SyntaxError, ValueError):
                continue  # a template, or a file in another encoding
            start = f"{package}/{inside.as_posix()}"
            found += [(f"{start}:{name}", *pair) for name, pair in _pairs(tree, "")]
    return found


def _folder(package: str) -> Path:
    if package == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingPackageError(f"{package} is not installed: pip install {package}")
    return Path(spec.origin).parent


def _pairs(node: ast.AST, name: str) -> Iterator[tuple[str, tuple[str, str]]]:
    if isinstance(node, _DEFINED):
        text = ast.get_docstring(node) or ""
        summary, *rest = (" ".join(p.split()) for p in re.split(r"\n\s*\n", text))
        details = next(filter(_is_prose, rest), None)
        if details and 20 <= len(summary) <= 300:
            yield name, (summary, details)
    for child in ast.iter_child_nodes(node):
        own = getattr(child, "name", "") if isinstance(child, _DEFINED) else ""
        yield from _pairs(child, f"{name}.{own}".strip("."))


def _is_prose(text: str) -> bool:
    """Whole sentences, no lists of parameters, no code."""
    letters = sum(c.isalpha() or c == " " for c in text)
    whole = text[:1].isupper() and text.endswith(".") and len(text.split()) >= 6
    return whole and 40 <= len(text) <= 1000 and letters > 0.9 * len(text)


@cache
def sentence_rows(file: Path, digest: str) -> ArrayRows:
    """The texts and what the student reads of them, (n, 96) hashed ids each; `digest` names `file`.

    Rows are ordered by length, so that a teacher's batch holds little padding.
    """
    found = sorted(read_json(file)["rows"], key=lambda row: (len(row[2]), row[0]))
    keys, summary, details = (list(column) for column in zip(*found, strict=True))
    ids = {"summary_ids": hashed(summary), "details_ids": hashed(details)}
    return ArrayRows(keys, summary=summary, details=details, **ids)


def sentence_splits(keys: list[str]) -> dict[str, list[str]]:
    """Whole source files are held out, about one in five: `train` and `test` share none."""
    held = {key: zlib.crc32(key.partition(":")[0].encode()) % 5 == 0 for key in keys}
    return {"train": [k for k in keys if not held[k]], "test": [k for k in keys if held[k]]}


def hashed(texts: list[str]) -> NDArray[np.int64]:
    """Buckets of the first 48 words and of their pairs; CamelCase is taken apart, 0 is padding."""
    ids = np.zeros((len(texts), IDS), np.int64)
    for row, text in enumerate(texts):
        apart = re.sub(r"([a-z])([A-Z])", r"\1 \2", text).lower()
        words = re.findall(r"[a-z]+|[0-9]+", apart)[:WORDS]
        both = [*words, *map(" ".join, pairwise(words))]
        ids[row, : len(both)] = [zlib.crc32(w.encode()) % (BUCKETS - 1) + 1 for w in both]
    return ids
