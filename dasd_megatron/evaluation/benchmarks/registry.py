"""The benchmarks. Adding one: a module that declares it, and a line here (or a plugin that registers it)."""

from __future__ import annotations

from dasd_megatron.config.benchmarks import BenchmarkConfig
from dasd_megatron.evaluation.benchmarks.benchmark import Benchmark
from dasd_megatron.evaluation.benchmarks.own_data import own_data
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.registry import Registry

BENCHMARKS: Registry[Benchmark] = Registry(
    "benchmark",
    {
        "aime24": "dasd_megatron.evaluation.benchmarks.aime:AIME24",
        "aime25": "dasd_megatron.evaluation.benchmarks.aime:AIME25",
        "gpqa_diamond": "dasd_megatron.evaluation.benchmarks.gpqa:GPQA_DIAMOND",
        "livecodebench_v5": "dasd_megatron.evaluation.benchmarks.livecodebench:LIVECODEBENCH_V5",
        "livecodebench_v6": "dasd_megatron.evaluation.benchmarks.livecodebench:LIVECODEBENCH_V6",
        "humaneval": "dasd_megatron.evaluation.benchmarks.human_eval:HUMAN_EVAL",
    },
)


def declared_benchmark(config: BenchmarkConfig, where: str) -> Benchmark:
    """What the entry `config`, at `where` in the recipe, is. Raises UserError for a name that is nobody's and has no data."""
    if config.name in BENCHMARKS.names():
        if config.columns is not None:
            raise UserError(
                f"{where}.columns: {config.name} has columns of its own; give data of one's own another name"
            )
        if config.answer_start is not None:
            raise UserError(
                f"{where}.answer_start: {config.name} has no such column; give data of one's own another name"
            )
        return BENCHMARKS.get(config.name, where)
    if config.path is None and config.dataset is None:
        BENCHMARKS.check(config.name, where)  # which says what there is
    return own_data(config, where)
