"""Prepares Megatron-Core for this machine when it is first imported; costs nothing in processes that never import it."""

from __future__ import annotations

import importlib.abc
import sys
import types
from collections.abc import Sequence


class _OnFirstImport(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None) -> None:
        """Finds nothing itself; the first module of Megatron's is what it waits for."""
        if name == "megatron" or name.startswith("megatron."):
            sys.meta_path.remove(self)
            from dasd_megatron.cpu_backend.megatron_without_cuda import prepare

            prepare()


def install_import_hook() -> None:
    """Called by the packages that import Megatron. Raises RuntimeError where Megatron was imported before."""
    if any(isinstance(finder, _OnFirstImport) for finder in sys.meta_path) or _prepared():
        return
    if any(name.startswith("megatron.core") for name in sys.modules):
        raise RuntimeError("import dasd_megatron.training before megatron")
    sys.meta_path.insert(0, _OnFirstImport())


def _prepared() -> bool:
    module = sys.modules.get("dasd_megatron.cpu_backend.megatron_without_cuda")
    return module is not None and bool(module.prepared)
