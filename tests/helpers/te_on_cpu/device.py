"""A process that believes it has GPUs: its tensors say so, and those that were made for the host say that they weren't.

All memory is the CPU's. A tensor is the host's where CUDA would put it there: made without a device or for "cpu", copied there by
`.cpu()` or `.to("cpu")`, computed from such tensors. An operation on tensors of both sides fails, as CUDA's would; so does
`numpy()` of the device's. Tensors whose Python object C++ has made (gradients, what `torch.load` reads) count as the device's:
some mix-ups are missed, and nothing right fails. For test processes only: `torch.cuda` is changed for good.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily
from torch.utils._pytree import tree_flatten

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
_MARK = "_is_on_the_host"
# Without a device these make tensors in host memory.
_FACTORIES = {
    getattr(torch, name)
    for name in (
        *("arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "ones", "zeros", "tensor"),
        *("rand", "randint", "randn", "randperm", "scalar_tensor", "tril_indices", "triu_indices"),
    )
}
# These may read one side and write the other.
_CROSSING = {
    torch.Tensor.copy_,
    torch.Tensor.data.__set__,
    torch.Tensor.set_,
    torch._has_compatible_shallow_copy_type,
}
# Of the device's tensors, by numbers on either side.
_INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}
_TENSOR = torch.Tensor


class WrongDevice(RuntimeError):
    """Tensors of host and device in one operation, or one that is where it can't be used."""


def is_on_host(tensor: torch.Tensor) -> bool:
    """Whether this process believes the tensor to be in host memory."""
    return bool(tensor.__dict__.get(_MARK, False))


def put(tensor: torch.Tensor, host: bool) -> torch.Tensor:
    """The tensor, marked as being there."""
    setattr(tensor, _MARK, host)
    return tensor


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Torch as it is, for what stands in for kernels: all tensors are in the same memory."""
    if torch._C._len_torch_function_stack():
        with _pop_mode_temporarily():
            yield
    else:
        yield


@contextlib.contextmanager
def tracked() -> Iterator[None]:
    """Torch with its two sides, for the product's and Transformer Engine's code that a kernel's stand-in calls."""
    with contextlib.nullcontext() if torch._C._len_torch_function_stack() else MODE:
        yield


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A stand-in for a kernel: takes tensors of the device alone, and gives such."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        for tensor in _tensors((args, kwargs)):
            if is_on_host(tensor) and tensor.numel():
                raise WrongDevice(f"{function.__name__}: got a tensor of shape {tuple(tensor.shape)} in host memory")
        with plain_torch():
            return function(*args, **kwargs)

    return run


def _tensors(tree: Any) -> list[torch.Tensor]:
    """But those that answer for themselves (ShardedTensor)."""
    plain = (torch.Tensor.__torch_function__, torch._C._disabled_torch_function_impl)
    leaves = (leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor))
    return [leaf for leaf in leaves if getattr(type(leaf), "__torch_function__", None) in plain]


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return (isinstance(device, str) and device.startswith("cuda")) or (type(device) is int)


def _is_cpu(device: Any) -> bool:
    return (isinstance(device, torch.device) and device.type == "cpu") or (isinstance(device, str) and device == "cpu")


class _TwoSides(TorchFunctionMode):
    """Keeps track of the side on which each tensor is."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        special = _SPECIAL.get(func)
        if special is not None:
            return special(func, *args, **kwargs)
        if str(getattr(func, "__module__", "")).startswith("torch.distributed"):
            return func(*args, **kwargs)  # what it makes inside, by constructors, isn't followed
        sides = {is_on_host(tensor) for tensor in _tensors((args, kwargs)) if tensor.dim() and tensor.numel()}
        crossing = func in _CROSSING or (func in _INDEXING and not is_on_host(args[0]))
        if len(sides) > 1 and not crossing:
            raise WrongDevice(f"{getattr(func, '__name__', func)}: tensors of host and device: {_shapes(args, kwargs)}")
        host = sides == {True}
        if "device" in kwargs:
            if kwargs["device"] is not None:
                host = not _is_cuda(kwargs["device"])
                kwargs["device"] = CPU if _is_cuda(kwargs["device"]) else kwargs["device"]
            elif func in _FACTORIES:
                host = True
        elif func in _FACTORIES and not sides:
            host = True
        kwargs.pop("pin_memory", None)
        result = func(*args, **kwargs)
        if host:
            for tensor in _tensors(result):
                put(tensor, True)
        if func == _TENSOR.data.__set__:
            put(args[0], is_on_host(args[1]))
        return result


def _shapes(args: Any, kwargs: Any) -> str:
    return ", ".join(
        f"{'host' if is_on_host(tensor) else 'device'} {tuple(tensor.shape)}" for tensor in _tensors((args, kwargs))
    )


def _device_of(func: Any, tensor: torch.Tensor, *_: Any) -> torch.device:
    real: torch.device = func(tensor)
    return CUDA if real.type == "cpu" and not is_on_host(tensor) else real


def _to(func: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    host = is_on_host(tensor)
    places = [*args[:1], *([kwargs["device"]] if kwargs.get("device") is not None else [])]
    for place in places:
        if isinstance(place, torch.Tensor):
            host = is_on_host(place)
        elif _is_cuda(place):
            host = False
        elif _is_cpu(place):
            host = True
    kwargs = {name: CPU if name == "device" and _is_cuda(value) else value for name, value in kwargs.items()}
    kwargs.pop("non_blocking", None)
    given = tuple(CPU if number == 0 and _is_cuda(value) else value for number, value in enumerate(args))
    result: torch.Tensor = func(tensor, *given, **kwargs)
    if host != is_on_host(tensor):
        result = result.clone() if result is tensor else result
        put(result, host)
    elif result is not tensor:
        put(result, host)
    return result


def _copied(host: bool) -> Callable[..., torch.Tensor]:
    def copy(func: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return tensor if is_on_host(tensor) == host else put(tensor.clone(), host)

    return copy


def _numpy(func: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if not is_on_host(tensor):
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu()")
    return func(tensor, *args, **kwargs)


def _type(func: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    named = func(tensor, *args, **kwargs)
    return named if args or kwargs or is_on_host(tensor) else named.replace("torch.", "torch.cuda.", 1)


def _product(func: Any, *factors: torch.Tensor, out_dtype: torch.dtype | None = None, **kwargs: Any) -> torch.Tensor:
    """mm and addmm, which have an `out_dtype` with CUDA alone."""
    if out_dtype is None:
        return func(*factors, **kwargs)
    if len(factors) == 3 and factors[0].dtype is not out_dtype:
        raise RuntimeError(f"addmm: adds to {factors[0].dtype}, and out_dtype is {out_dtype}")
    result = func(*(factor.to(out_dtype) for factor in factors))
    out = kwargs.get("out")
    return result if out is None else out.copy_(result)


def _named_device(func: Any, *args: Any, **kwargs: Any) -> torch.device:
    if len(args) == 1 and type(args[0]) is int and not kwargs:
        return torch.device("cuda", args[0])  # a number is the accelerator's
    device: torch.device = func(*args, **kwargs)
    return device


_SPECIAL: dict[Any, Callable[..., Any]] = {
    torch.device: _named_device,
    _TENSOR.is_cuda.__get__: lambda func, tensor, *_: not is_on_host(tensor),
    _TENSOR.device.__get__: _device_of,
    _TENSOR.cuda: _copied(host=False),
    _TENSOR.cpu: _copied(host=True),
    _TENSOR.to: _to,
    _TENSOR.type: _type,
    _TENSOR.numpy: _numpy,
    _TENSOR.pin_memory: lambda func, tensor, *_, **__: tensor,
    _TENSOR.get_device: lambda func, tensor, *_: -1 if is_on_host(tensor) else 0,
    torch.mm: _product,
    torch.addmm: _product,
}
MODE = _TwoSides()
