"""Puts the stand-in in place: to be called before `transformer_engine` and `megatron` are imported."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest.mock import MagicMock

import torch

import dasd_megatron.cpu_backend  # noqa: F401 (has to know before megatron is imported that there are GPUs)

# Of modules as they are imported, texts to replace: what has no other door. A text that is gone is an error.
_SOURCES: Mapping[str, Sequence[tuple[str, str]]] = {
    # cuDNN takes 16 bits alone; the stand-in takes float32, so that results compare to 1e-5.
    "transformer_engine.pytorch.attention.dot_product_attention.utils": [
        (
            "    qkv_dtype = attention_params.qkv_dtype\n    nominal",
            "    qkv_dtype = attention_params.qkv_dtype\n"
            "    qkv_dtype = torch.bfloat16 if qkv_dtype is torch.float32 else qkv_dtype\n    nominal",
        )
    ],
    "transformer_engine.pytorch.attention.dot_product_attention.backends": [
        (
            "x.dtype in [torch.float16, torch.bfloat16] or isinstance(x, QuantizedTensorStorage)",
            "x.dtype in [torch.float16, torch.bfloat16, torch.float32] or isinstance(x, QuantizedTensorStorage)",
        )
    ],
    # One configuration, so that none is measured: the kernel runs in Triton's interpreter.
    "transformer_engine.common.triton.permutation": [("= (64, 128, 256, 512, 1024, 2048, 4096)", "= (64,)")],
    "transformer_engine.pytorch.permutation": [
        (
            "import transformer_engine.pytorch.triton.permutation as triton_permutation",
            "import tests.helpers.te_on_cpu.permutation as triton_permutation",
        )
    ],
}


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> types.CodeType:
        source = self.get_data(self.get_filename(fullname)).decode()
        for old, new in _SOURCES[fullname]:
            if old not in source:
                raise RuntimeError(f"{fullname}: the text to replace is gone: {old!r}")
            source = source.replace(old, new)
        return compile(source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _SOURCES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(name, spec.origin)
        return spec


def install_if_asked() -> None:
    """Where the environment has TE_ON_CPU: folders of Transformer Engine and Triton, as in PATH."""
    if "TE_ON_CPU" in os.environ:
        install([Path(package) for package in os.environ["TE_ON_CPU"].split(os.pathsep)])


def install(packages: Sequence[Path], capability: tuple[int, int] = (9, 0)) -> None:
    """Makes this process believe in its GPUs, and gives Transformer Engine, found in `packages`, its extension; once."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    os.environ |= {"NVTE_PROJECT_BUILDING": "1", "NVTE_TORCH_COMPILE": "0", "TRITON_INTERPRET": "1"}
    sys.path += [str(path) for path in packages if str(path) not in sys.path]
    from tests.helpers.te_on_cpu import cuda
    from tests.helpers.te_on_cpu.extension.module import NAME, extension_module

    cuda.believe(capability)
    sys.modules[NAME] = extension_module()
    sys.meta_path.insert(0, _Finder())
    for name in ("onnxscript", "onnx"):  # for an export that training never touches
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = MagicMock()
    import transformer_engine.common as common

    common.load_framework_extension = lambda framework: None
    _use_the_cpus_random_generator()


def _use_the_cpus_random_generator() -> None:
    """Megatron asks CUDA's generators for their state itself."""
    import megatron.core.tensor_parallel.random as random

    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    random._get_cuda_rng_state = lambda device="cpu", clone=False, graph_safe=False: torch.get_rng_state()
