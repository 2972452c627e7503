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
        tiny: what the stand-in adds to them, and by that takes the place of sizes; None: it can't run there.
        minutes: its limit.
        ranks: makes the arguments that depend on the number of GPUs.
    """

    name: str
    question: str
    arguments: Sequence[str]
    tiny: Sequence[str] | None
    minutes: float = 3
    ranks: Callable[[int], list[str]] = field(default=lambda gpus: [])

    @property
    def is_test(self) -> bool:
        """Whether pytest runs it; else it prints JSON at its end."""
        return self.arguments[0] == "pytest"


def _tests(name: str, question: str, tiny: str | None = None, minutes: float = 3) -> Check:
    """A file of tests; `tiny`: the only one of them that the stand-in runs."""
    arguments = ["pytest", f"tests/gpu/test_{name}.py", "-q", "-rs", "-p", "no:cacheprovider", "-o", "addopts="]
    return Check(f"tests_{name}", question, arguments, None if tiny is None else ["-k", tiny], minutes)


def _benchmark(name: str, question: str, sizes: str, tiny: str | None, minutes: float = 3) -> Check:
    arguments = [f"benchmarks.{name}", *sizes.split()]
    return Check(name, question, arguments, None if tiny is None else tiny.split(), minutes)


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
    Check(
        "checkpoints",
        "How long does training stand still for a save, and what memory does a rank need for it?",
        ["benchmarks.checkpoints"],
        ["--ranks", "1"],
        ranks=lambda gpus: ["--ranks", str(gpus)],
    ),
    _benchmark(
        "train_step",
        "How fast are steps beside transformers, and do short ones wait for the host?",
        "--size 4B --layers 18 --lengths 4096 8192 32768 65536 --steps 3",
        "--size 5M --layers 1 --lengths 64 --fp8 tensorwise --steps 1",
        8,
    ),
    _benchmark(
        "scoring",
        "How fast are documents scored, by Megatron and by vLLM?",
        "--size 0.6B --dtype bfloat16 --documents 64 --mean 4096 --longest 16384 --rounds 1 --long 65536",
        None,
        4,
    ),
)
