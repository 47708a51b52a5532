"""Shortens the product's waits that are not settings, for tests with real processes."""

import sys
from importlib import import_module
from typing import Any


def shorten(values: dict[str, Any]) -> None:
    """Replace constants, each by its dotted name, in every module that has imported them.

    Raises AttributeError when the product has no such constant any more.
    """
    for dotted, value in values.items():
        home, _, name = dotted.rpartition(".")
        before = getattr(import_module(home), name)
        for module in list(sys.modules.values()):
            ours = module.__name__.split(".")[0] in ("worker", "tasks")
            if ours and vars(module).get(name) is before:
                setattr(module, name, value)
