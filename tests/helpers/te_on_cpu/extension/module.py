"""The module itself."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from tests.helpers.te_on_cpu.extension import (
    attention,
    context_parallel,
    enums,
    norms,
    optimizer,
    products,
    quantization,
    rope,
)

NAME = "transformer_engine_torch"
# What the environment would be.
_VERSIONS = {
    "get_cudnn_version": lambda: 92600,
    "get_cublasLt_version": lambda: 130100,
    "get_num_cublas_streams": lambda: 4,
    "device_supports_multicast": lambda *_: False,
    "ubuf_built_with_mpi": lambda: False,
    "get_stream_priority_range": lambda *_: (0, 0),
}
# What `import *` must find, though no model of ours calls it.
_IMPORTED = ("layernorm_fwd", "layernorm_bwd")


class _Overlap:
    """Communication inside of products."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("user buffers")


class ExtensionModule(types.ModuleType):
    """Says the name of what isn't emulated when it's called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _missing(name)


def _missing(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        given = [type(value).__name__ for value in args]
        raise NotImplementedError(f"{NAME}.{name} isn't emulated (called with {given}, {list(kwargs)})")

    return call


def extension_module() -> ExtensionModule:
    """For sys.modules."""
    made = ExtensionModule(NAME)
    made.__file__ = __file__
    contents: dict[str, Any] = {name: _missing(name) for name in _IMPORTED}
    contents |= {**_VERSIONS, **dict.fromkeys(("CommOverlap", "CommOverlapP2P", "CommOverlapHelper"), _Overlap)}
    for part in (enums, quantization, products, norms, rope, attention, context_parallel, optimizer):
        contents |= {
            name: value
            for name, value in vars(part).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == part.__name__
        }
        contents |= {
            name: value for name, value in vars(part).items() if name.startswith(("NVTE", "FP8", "CommOverlap"))
        }
    for name, value in contents.items():
        setattr(made, name, value)
    made.__all__ = list(contents)
    return made
