"""Registries: the things of one kind that a recipe can name, the product's own and those that plugins add."""

from __future__ import annotations

import difflib
import importlib
import traceback
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar, cast

from dasd_megatron.utils.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind of thing. Nothing is imported before it is asked for, so that a tool loads only what it needs."""

    def __init__(self, kind: str, builtin: Mapping[str, str]) -> None:
        """`kind`: what they are, for messages; `builtin`: name -> "module:attribute"."""
        self.kind = kind
        self._builtin = dict(builtin)
        self._added: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds what it decorates. Raises ValueError for a name that is taken."""

        def add(item: T) -> T:
            known = self._added.get(name)
            # A module may be executed twice (as __main__, and imported): the same definition is no clash.
            same = known is not None and getattr(known, "__qualname__", None) == getattr(item, "__qualname__", known)
            if name in self._builtin or (known is not None and not same):
                raise ValueError(f"{self.kind} {name!r} is registered already")
            self._added[name] = item
            return item

        return add

    def names(self) -> list[str]:
        """All names, the product's own first."""
        return [*self._builtin, *self._added]

    def check(self, name: str, where: str) -> None:
        """Raises UserError, as `get` does, without importing anything."""
        if name not in self._builtin and name not in self._added:
            near = difflib.get_close_matches(name, self.names(), n=1)
            raise UserError(
                f"{where + ': ' if where else ''}no {self.kind} is called {name!r}"
                + (f"; the nearest is {near[0]!r}" if near else "")
                + f"; there are: {', '.join(self.names())} (modules that register more are listed under `plugins`)"
            )

    def get(self, name: str, where: str = "") -> T:
        """What has this name. Raises UserError with all names where nothing has; `where`: the setting that says it."""
        self.check(name, where)
        if name in self._added:
            return self._added[name]
        module, _, attribute = self._builtin[name].partition(":")
        return cast(T, getattr(importlib.import_module(module), attribute))


_loaded_plugins: list[str] = []


def loaded_plugins() -> list[str]:
    """The plugins that this process has loaded; a child that needs what they register loads them, too."""
    return list(_loaded_plugins)


def load_plugins(modules: list[str], where: str) -> None:
    """Imports the modules that a recipe lists under `plugins`. Raises UserError for one that can't be: why, and where."""
    for name in modules:
        try:
            importlib.import_module(name)
            if name not in _loaded_plugins:
                _loaded_plugins.append(name)
        except Exception as error:  # a plugin can raise anything
            raise UserError(f"{where}: plugins: {name!r} can't be imported: {_reason(name, error)}") from None


def _reason(plugin: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and f"{plugin}.".startswith(f"{error.name}."):
        remedy = "install it, or put its folder on PYTHONPATH (on a cluster: under `environment` of the cluster file)"
        return f"{error}; {remedy}"
    # The last place outside of Python's import machinery and of this file: in the plugin, or in what it calls.
    places = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen ") and frame.filename not in (__file__, importlib.__file__)
    ]
    text = f"{type(error).__name__}: {error}"
    return f"{text} ({places[-1]})" if places else text
