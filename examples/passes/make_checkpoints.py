"""Train the two models of a toy in which mistakes are found late, and write them as Hugging Face folders.

The problems are those of ``examples/toy``. A response works the problem in *passes*, each with all products and then the
sums, until two in a row end in the same digit, which is the answer::

    <think>3*4=2;7*2=4;2+4=7;?3*4=2;7*2=4;2+4=6;?3*4=2;7*2=4;2+4=6;</think>6

A slip (2% of the teacher's steps) isn't noticed where it is made, and later steps go on from it; the next pass finds it. So
a teacher can go on from any mistake of a student, however late, and a student that makes more of them writes more passes: it
runs long. Mixed policy learns from such answers, so that it can be tested fairly here, as ``examples/toy`` can't.

The teacher has learned passes; the student works problems of 2-3 products in one.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "toy"))

from chat_tokenizers import STUDENT, TEACHER  # noqa: E402
from make_checkpoints import ModelRecipe, main, write_without_slips  # noqa: E402
from problems import parse_terms  # noqa: E402

SLIP_RATE = 0.02
MAX_PASSES = 6


def write_pass(problem: str, rng: random.Random) -> tuple[str, int]:
    """All steps once, some of them wrong, and the digit that they end with."""
    steps: list[str] = []

    def work(left: int, operator: str, right: int) -> int:
        result = (left * right if operator == "*" else left + right) % 10
        if rng.random() < SLIP_RATE:
            result = (result + rng.randint(1, 9)) % 10
        steps.append(f"{left}{operator}{right}={result};")
        return result

    digits = [work(a, "*", b) for a, b in parse_terms(problem)]
    total = digits[0]
    for digit in digits[1:]:
        total = work(total, "+", digit)
    return "".join(steps), total


def write_passes(problem: str, rng: random.Random) -> str:
    """Passes until two in a row agree."""
    passes, before = [], None
    while len(passes) < MAX_PASSES:
        steps, total = write_pass(problem, rng)
        passes.append(steps)
        if total == before:
            break
        before = total
    return f"<think>{'?'.join(passes)}</think>{total}"


RECIPES = {
    "teacher": ModelRecipe(TEACHER, hidden_size=96, intermediate_size=256, steps=1600, write=write_passes),
    "student": ModelRecipe(
        STUDENT, hidden_size=64, intermediate_size=160, steps=900, write=write_without_slips, lengths=(2, 3)
    ),
}

if __name__ == "__main__":
    main(RECIPES, HERE)
