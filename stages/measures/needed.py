"""Packages that measures need, asked for when one is used."""

from __future__ import annotations

import importlib
from typing import Any

from stillroom.storage.errors import MissingPackageError


def needed(module: str, extra: str = "metrics") -> Any:
    """A module of an optional package; MissingPackageError that says what to install."""
    package = module.split(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"this evaluation needs the package {package}, which is not installed: "
            f"pip install 'stillroom[{extra}]'"
        ) from error


def shaped(tensors: Any, name: str, axes: int, what: str) -> Any:
    """A tensor of so many axes; ValueError that names it and what it should be."""
    if name not in tensors:
        known = ", ".join(sorted(tensors))
        raise ValueError(f"the evaluation reads {name}, which is not there; there are {known}")
    if (found := tensors[name]).ndim != axes:
        raise ValueError(f"{name} should be {what}, found shape {tuple(found.shape)}")
    return found
