"""Published methods, one file each: the file's name is the method's, `recipe()` its paper's defaults.

A module of your own with a function `recipe()` is found by its dotted name.
"""

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
    """Every method in this folder by its file's name, without importing any of them."""
    return sorted(found.name for found in pkgutil.iter_modules(__path__))


def module(name: str) -> ModuleType:
    """The module of a method: one of this folder, or by its dotted name anybody's own.

    UnknownRecipeError offers the nearest name, and says where an own module lacks `recipe()`.
    """
    slug = name.replace("-", "_")
    own = "." in name
    if not own and slug not in names():
        raise UnknownRecipeError(f"no recipe {name!r}; {nearest(slug, names())}")
    try:
        found = importlib.import_module(name if own else f"{__name__}.{slug}")
    except ModuleNotFoundError as error:
        if not own or error.name is None or not name.startswith(error.name):
            raise  # the module is there; what it imports is not
        raise UnknownRecipeError(
            f"no module {name!r} to find a recipe in; is it installed, or in this folder?"
        ) from error
    if not callable(getattr(found, "recipe", None)):
        raise UnknownRecipeError(f"module {name!r} has no function recipe() that returns a Recipe")
    return found


def find(name: str, **settings: Any) -> Recipe:
    """The method's recipe, with settings in place of the paper's defaults.

    >>> find("kd", temperature=2.0).reads
    ('logits',)
    """
    make: Callable[..., Recipe] = module(name).recipe
    return make(**settings)
