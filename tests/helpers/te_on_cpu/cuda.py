"""`torch.cuda` of a process that has no GPU and is to believe otherwise: streams and events that do nothing."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from tests.helpers.te_on_cpu.device import MODE, is_on_host, put, tracked

DEVICES = 8


class Stream:
    """A stream or event: all work is done when it's asked for."""

    cuda_stream = stream_id = priority = device_index = 0
    device = torch.device("cuda", 0)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record_event(self, event: Stream | None = None) -> Stream:
        return event or Stream()

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Stream) -> float:
        return 1.0

    def wait_stream(self, *_: Any) -> None: ...

    wait_event = synchronize = record = wait = wait_stream

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None: ...


class _Work:
    """A message under way. Transformer Engine waits for some twice, for which gloo, unlike NCCL, would wait for ever."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def wait(self, *_: Any) -> bool:
        work, self._work = self._work, None
        return work is None or bool(work.wait())


def _nothing(*_: Any, **__: Any) -> None: ...


def believe(capability: tuple[int, int]) -> None:
    """Makes this process take its GPU branches from here on."""
    import torch._dynamo.trace_rules as rules
    import torch.utils.checkpoint

    rules.get_torch_obj_rule_map()  # a table of torch's functions, each once: before some of them change
    torch.compile = lambda model=None, **_: model if model is not None else (lambda function: function)
    properties = types.SimpleNamespace(
        major=capability[0], minor=capability[1], name="no GPU", multi_processor_count=132, total_memory=80 << 30
    )
    none = contextlib.nullcontext
    state = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: False,
        "device_count": lambda: DEVICES,
        "current_device": lambda: 0,
        "device": lambda *_: none(),
        "stream": lambda *_, **__: none(),
        "current_stream": lambda *_, **__: Stream(),
        "default_stream": lambda *_, **__: Stream(),
        "Stream": Stream,
        "Event": Stream,
        "get_device_capability": lambda *_: capability,
        "get_device_properties": lambda *_: properties,
        "get_device_name": lambda *_: "NVIDIA H100",
        "manual_seed": torch.default_generator.manual_seed,
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "default_generators": [torch.default_generator],
        "memory_stats": lambda *_: {},
        "memory_allocated": lambda *_: 0,
        "memory_reserved": lambda *_: 0,
        "max_memory_allocated": lambda *_: 1 << 30,
        "max_memory_reserved": lambda *_: 1 << 30,
        "mem_get_info": lambda *_: (70 << 30, 80 << 30),
        **dict.fromkeys(
            ("init", "_lazy_init", "set_device", "synchronize", "empty_cache", "manual_seed_all"), _nothing
        ),
        "reset_peak_memory_stats": _nothing,
    }
    for name, value in state.items():
        setattr(torch.cuda, name, value)
    for name in ("FloatTensor", "IntTensor", "LongTensor", "ByteTensor", "DoubleTensor"):
        setattr(torch.cuda, name, _tensor_type(name))
    for name in ("from_numpy", "frombuffer"):  # which no mode sees
        read = getattr(torch, name)
        setattr(torch, name, lambda *args, read=read, **kwargs: put(read(*args, **kwargs), True))
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = _nothing
    torch.cuda.nvtx.range = lambda *_, **__: none()
    torch.version.cuda = "13.0"
    torch.Tensor.record_stream = _nothing  # whose arguments are checked before a mode is asked
    init, batch = dist.init_process_group, dist.batch_isend_irecv
    dist.init_process_group = lambda backend=None, *args, **kwargs: init("gloo", *args, **kwargs)
    dist.batch_isend_irecv = lambda operations: [_Work(work) for work in batch(operations)]
    torch.autograd._engine_run_backward = _tracked(torch.autograd._engine_run_backward)
    _track_custom_operators()
    _parameters_keep_their_side()
    _wrappers_are_on_the_cpu()
    # Compares, without the mode, devices that were noted down with it.
    torch.utils.checkpoint._allowed_determinism_checks_to_fns["default"] = lambda tensor: None
    MODE.__enter__()


def _tensor_type(name: str) -> type:
    """What makes tensors of the device; a class, since Megatron asks of what it is given whether it is one."""
    make = getattr(torch, name)
    return type(name, (), {"__new__": lambda cls, *args: put(make(*args), False)})


def _tracked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with sides tracked: they aren't in what was dispatched to the mode, and backward functions run there."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with tracked():
            return function(*args, **kwargs)

    return run


def _track_custom_operators() -> None:
    custom_op = torch.library.custom_op

    def define(name: str, fn: Any = None, /, **settings: Any) -> Any:
        if fn is None:
            return lambda function: define(name, function, **settings)
        if settings.get("schema") is None:
            settings["schema"] = torch.library.infer_schema(fn, mutates_args=settings["mutates_args"])
        return custom_op(name, _tracked(fn), **settings)

    torch.library.custom_op = define


def _parameters_keep_their_side() -> None:
    make = torch.nn.Parameter.__new__

    def new(cls: type, data: torch.Tensor | None = None, requires_grad: bool = True) -> torch.Tensor:
        parameter = make(cls, data, requires_grad)
        return put(parameter, True) if data is not None and is_on_host(data) else parameter

    torch.nn.Parameter.__new__ = staticmethod(new)


def _wrappers_are_on_the_cpu() -> None:
    """Tensors of FP8 are objects around others; autograd asks the device that they name for a stream."""
    make = torch.Tensor._make_wrapper_subclass

    def wrap(cls: type, *args: Any, **settings: Any) -> Any:
        return make(cls, *args, **{**settings, "device": torch.device("cpu")})

    torch.Tensor._make_wrapper_subclass = staticmethod(wrap)
