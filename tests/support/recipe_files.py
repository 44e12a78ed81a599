"""Recipes as modules, for tests of what is in them."""

import importlib.util
import sys
from types import ModuleType

from upalm.training import recipes


def load_recipe(name: str) -> ModuleType:
    """Import the file of a recipe."""
    spec = importlib.util.spec_from_file_location(name, recipes.find(name))
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[name] = recipe  # dataclasses look there
    spec.loader.exec_module(recipe)
    return recipe
