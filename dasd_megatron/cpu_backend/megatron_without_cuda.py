"""Megatron-Core on a machine without CUDA: prepared before Megatron's first module is found. A no-op where CUDA is available.

Megatron-Core names CUDA directly (`device="cuda"`, `torch.cuda.current_stream()`). No Megatron file is changed: modules under
`megatron.` are given a `torch` of their own, in which these names mean the CPU. Everything else sees the real torch.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from dasd_megatron.cpu_backend.rope import rope_of_packs

prepared = False


def prepare() -> None:
    """Makes Megatron-Core importable and usable here; called by the import hook."""
    global prepared
    prepared = True
    if torch.cuda.is_available():
        return
    # At every start Megatron warns of each GPU library that a machine without a GPU lacks.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|megatron)\.")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.distributed\.checkpoint\.")
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    if importlib.util.find_spec("triton") is None:
        _stub_paged_stash()
    # The one change outside megatron's own modules: a tensor on a CPU build has nowhere else to go.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign,assignment]
    sys.meta_path.insert(0, _Finder())


@contextlib.contextmanager
def optimizer_checks() -> Iterator[None]:
    """While Megatron's optimizers are built or step: they compare a tensor's type with 'torch.cuda.FloatTensor'."""
    if torch.cuda.is_available():
        yield
        return
    original = torch.Tensor.type

    def type_as_if_on_gpu(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result

    torch.Tensor.type = type_as_if_on_gpu  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.Tensor.type = original  # type: ignore[method-assign]


class _Stream:
    """A CUDA stream or event that does nothing: on a CPU everything runs in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None

    def record_event(self, *args: Any) -> _Stream:
        return _Stream()

    def query(self) -> bool:
        return True

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exception: object) -> None: ...


class _Cuda(types.ModuleType):
    """`torch.cuda` as megatron's modules see it."""

    Stream = Event = _Stream
    is_available = staticmethod(lambda: False)
    is_current_stream_capturing = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 0)
    current_device = staticmethod(lambda: torch.device("cpu"))
    current_stream = default_stream = staticmethod(lambda *args, **kwargs: _Stream())
    stream = staticmethod(lambda *args, **kwargs: contextlib.nullcontext())
    synchronize = empty_cache = set_device = staticmethod(lambda *args, **kwargs: None)
    manual_seed = staticmethod(torch.manual_seed)
    get_rng_state = staticmethod(lambda *args, **kwargs: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, *args, **kwargs: torch.set_rng_state(state))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)


class _Torch(types.ModuleType):
    """`torch` as megatron's modules see it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "rand", "randn", "randint", "as_tensor")
_LIKE_FACTORIES = ("empty_like", "zeros_like", "ones_like")


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`factory`, with a CUDA device and pinned memory understood as plain CPU memory."""

    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return make


def _megatron_torch() -> types.ModuleType:
    module = _Torch("torch")
    module.cuda = _Cuda("torch.cuda")  # type: ignore[attr-defined]
    for name in (*_FACTORIES, *_LIKE_FACTORIES):
        setattr(module, name, _on_cpu(getattr(torch, name)))
    return module


_TORCH = _megatron_torch()


# By Megatron's module: what it imports for log files that nothing here writes. Together with the compiler (below) that is half
# the time in which a process starts.
_NEEDLESS = {"megatron.core.timers": ("wandb", "torch.utils.tensorboard")}


@contextlib.contextmanager
def _light(name: str) -> Iterator[None]:
    """While one of megatron's modules is executed: nothing is compiled, which would load torch's compiler, and what it doesn't
    need isn't found."""
    compile_, hidden = torch.compile, [needless for needless in _NEEDLESS.get(name, ()) if needless not in sys.modules]
    torch.compile = lambda model=None, **_: model if model is not None else (lambda function: function)  # type: ignore[assignment,misc]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        torch.compile = compile_  # type: ignore[misc]
        for needless in hidden:
            del sys.modules[needless]


def _patch(module: Any) -> None:
    """Called once for every megatron module, right after it was executed."""
    if getattr(module, "torch", None) is torch:
        module.torch = _TORCH  # type: ignore[attr-defined]
    if module.__name__ == "megatron.core.jit":
        module.disable_jit_fuser()  # compiling on the fly costs more than it gains on a CPU
    elif module.__name__ == "megatron.core.tensor_parallel.random":
        _patch_rng(module)
    elif module.__name__ == "megatron.core.models.common.embeddings.rope_utils":
        module._apply_rotary_pos_emb_thd = rope_of_packs  # type: ignore[attr-defined]
    elif module.__name__ == "megatron.core.utils":
        module.local_multi_tensor_scale = _scale  # type: ignore[attr-defined]
    elif module.__name__ == "megatron.core.transformer.moe.moe_utils":
        # all_to_all wants its split sizes as lists; Megatron converts only CUDA tensors.
        module.maybe_move_tensor_to_cpu = (  # type: ignore[attr-defined]
            lambda tensor, as_numpy=False, record_stream=False: (
                tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor
            )
        )


def _scale(chunk_size: int, noop_flag: Any, tensors: Sequence[Sequence[torch.Tensor]], scale: float) -> None:
    """Without a copy of each tensor between."""
    for source, target in zip(*tensors, strict=True):
        torch.mul(source, scale, out=target)


def _patch_rng(module: Any) -> None:
    """Model-parallel random states, kept in the CPU generator."""
    module._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    module._get_cuda_rng_state = lambda device="cpu", clone=False, graph_safe=False: torch.get_rng_state()

    @contextlib.contextmanager
    def fork(self: Any, name: str = module._MODEL_PARALLEL_RNG_TRACKER_NAME) -> Iterator[None]:
        if name not in self.states_:
            raise KeyError(f"random state {name} was not added")
        outside = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(outside)

    module.CudaRNGStatesTracker.fork = fork


def _stub_paged_stash() -> None:
    """The only module on the training path that imports triton unguarded; its kernels are for GPUs."""
    module = types.ModuleType("megatron.core.transformer.moe.ops.paged_stash")
    module.GLOBAL_BLOCK_SIZE = 1024  # type: ignore[attr-defined]
    module.paged_stash_copy_kernel = module.paged_stash_pop_kernel = None  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module


class _Finder(importlib.abc.MetaPathFinder):
    """Finds megatron's modules as usual and patches each after it was executed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None) -> Any:
        if not name.startswith("megatron."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None or isinstance(spec.loader, importlib.machinery.ExtensionFileLoader):
            return spec
        execute = spec.loader.exec_module

        def execute_and_patch(module: types.ModuleType) -> None:
            with _light(name):
                execute(module)
            _patch(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec
