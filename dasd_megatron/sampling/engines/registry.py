"""The engines. Adding one: a module with a class that keeps the Engine protocol, and a line here (or a plugin)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.sampling.engines.engine import Engine
from dasd_megatron.utils.registry import Registry

# Each is called with a model folder and the recipe's `engine` section; the model is loaded when it returns.
ENGINES: Registry[Callable[[Path, EngineConfig], Engine]] = Registry(
    "engine",
    {
        "vllm": "dasd_megatron.sampling.engines.vllm_engine:VllmEngine",
        "server": "dasd_megatron.sampling.engines.server_engine:ServerEngine",
        "transformers": "dasd_megatron.sampling.engines.transformers_engine:TransformersEngine",
        "megatron": "dasd_megatron.sampling.engines.megatron_engine:MegatronEngine",
    },
)
# Engines that score, and don't sample.
ONLY_SCORE = frozenset({"megatron"})


def load_engine(model: Path, config: EngineConfig) -> Engine:
    """The engine that a recipe's `engine` section asks for, with this model loaded."""
    return ENGINES.get(config.name, "engine.name")(model, config)
