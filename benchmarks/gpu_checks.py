"""What a machine with GPUs is asked: processes that it passes or fails, each with tiny sizes for the stand-in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Check:
    """A process that a machine passes or fails.

    Attributes:
        name: unique.
        question: what its result answers.
        arguments: of `python -m`.
        tiny: what is added to them where there is no GPU, and by that takes the place of sizes; None: it can't run there.
        minutes: its limit.
        ranks: makes the arguments that depend on the number of GPUs.
        emulated: whether it needs emulated kernels where there is no GPU; vLLM has its own build for CPUs.
    """

    name: str
    question: str
    arguments: Sequence[str]
    tiny: Sequence[str] | None
    minutes: float = 3
    ranks: Callable[[int], list[str]] = field(default=lambda gpus: [])
    emulated: bool = True

    @property
    def is_test(self) -> bool:
        """Whether pytest runs it; else it prints JSON at its end."""
        return self.arguments[0] == "pytest"


def _tests(name: str, question: str, tiny: str | None = None, minutes: float = 3) -> Check:
    """A file of tests; `tiny`: the only one of them that the stand-in runs."""
    arguments = ["pytest", f"tests/gpu/test_{name}.py", "-q", "-rs", "-p", "no:cacheprovider", "-o", "addopts="]
    return Check(f"tests_{name}", question, arguments, None if tiny is None else ["-k", tiny], minutes)


def _benchmark(
    name: str,
    question: str,
    sizes: str,
    tiny: str | None,
    minutes: float = 3,
    gpus: str | None = None,
    emulated: bool = True,
) -> Check:
    """A module of `benchmarks`; `gpus`: the option that takes the number of GPUs."""
    return Check(
        name,
        question,
        [f"benchmarks.{name}", *sizes.split()],
        None if tiny is None else tiny.split(),
        minutes,
        lambda count: [] if gpus is None else [gpus, str(count)],
        emulated,
    )


CHECKS = (
    _tests("transformer_engine", "Does Transformer Engine compute what the CPU reference does, in every family?"),
    _tests("stages", "Do layouts agree, and do stages resume, offloaded ones too?", "test_a_stage_resumes", 5),
    _tests("precision", "Does FP8 learn what bf16 does, and resume?"),
    _tests("long_context", "Do steps of 32K tokens fit, and is their memory what the estimate says?"),
    _tests("vllm", "Does vLLM write what transformers writes?"),
    _benchmark(
        "attention",
        "Which attention for documents of which length?",
        "",
        "--tokens 64 --documents 16 64 --heads 4 --groups 2 --head-dim 16 --repeats 1",
    ),
    _benchmark(
        "fused_loss",
        "How far are head and loss from three ideal products?",
        "--tokens 65536 --hidden 2560",
        "--tokens 64 --vocabulary 128 --hidden 16",
    ),
    _benchmark(
        "checkpoints",
        "How long does training stand still for a save, and what memory does a rank need for it?",
        "",
        "--ranks 2",
        gpus="--ranks",
    ),
    _benchmark(
        "train_step",
        "How fast are steps beside transformers, and do short ones wait for the host?",
        "--size 4B --layers 18 --lengths 4096 8192 32768 65536 --steps 3",
        "--size 5M --layers 1 --lengths 64 --fp8 tensorwise --steps 1",
        minutes=8,
    ),
    _benchmark(
        "layouts",
        "Which split of long documents, and which recomputation of experts?",
        "",
        "--ranks 2 --tiny --layers 1 --lengths 32 --steps 1",
        minutes=6,
        gpus="--ranks",
    ),
    _benchmark(
        "scoring",
        "How fast are documents scored, by Megatron and by vLLM?",
        "--size 0.6B --dtype bfloat16 --documents 64 --mean 4096 --longest 16384 --rounds 1 --long 65536",
        "--size small --dtype float32 --documents 4 --mean 64 --longest 128 --long 256",
        minutes=4,
        emulated=False,
    ),
    _benchmark(
        "engine_speed",
        "How fast does vLLM write, and does the next engine start at once?",
        "--size 4B",
        "--size small --dtype float32 --batch 2 --tokens 8",
        minutes=6,
        gpus="--gpus",
        emulated=False,
    ),
    _benchmark(
        "environment", "What do processes find set, and have caches a place?", "", "", minutes=1, emulated=False
    ),
)
