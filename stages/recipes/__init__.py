"""Published methods, one file each: the file's name is the method's, `recipe()` its paper's defaults."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

from stillroom.stages.recipe import Recipe
from stillroom.storage.errors import StillroomError, nearest


class UnknownRecipeError(StillroomError, KeyError):
    """There is no recipe of that name."""


def names() -> list[str]:
    """Every method in this folder, without importing any of them."""
    return sorted(found.name for found in pkgutil.iter_modules(__path__))


def module(name: str) -> ModuleType:
    """The module of a method; UnknownRecipeError offers the nearest name."""
    slug = name.replace("-", "_")
    if slug not in names():
        raise UnknownRecipeError(f"no recipe {name!r}; {nearest(slug, names())}")
    return importlib.import_module(f"{__name__}.{slug}")


def find(name: str, **settings: Any) -> Recipe:
    """The method's recipe, with settings in place of the paper's defaults.

    >>> find("kd", temperature=2.0).reads
    ('logits',)
    """
    make: Callable[..., Recipe] = module(name).recipe
    return make(**settings)
