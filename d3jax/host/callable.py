"""Modules that can be called, for a room whose name is also what its users do."""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A module; calling it calls a function, whose module is imported then."""

    _calls: tuple[str, str]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        module, function = self._calls
        return getattr(importlib.import_module(module), function)(*arguments, **options)


def make_callable(name: str, module: str, function: str) -> None:
    """The imported module `name`, when it is called, calls `function` of `module`.

    So `d3jax.distill` is the room with the inner loop, and `d3jax.distill("d3", ...)` a run.
    """
    room: Any = sys.modules[name]
    room.__class__ = _Callable
    room._calls = (module, function)
