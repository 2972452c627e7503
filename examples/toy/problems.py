"""The toy reasoning problem: the last digit of a sum of products.

A problem is a text such as ``3*4+7*2+5*6?``: two to five products of the digits 2-9. Its answer is the last digit of
the sum, here ``6``. A worked response (a *trace*) thinks in short steps, each of which keeps only the last digit of its
result, and then states the answer::

    <think>3*4=2;7*2=4;5*6=0;2+4=6;6+0=6;</think>6

The teacher works in two *modes*:

* ``products_first`` (70%): all the products, then the sums, as above;
* ``running_total`` (30%): each product is added as soon as it is known, ``3*4=2;7*2=4;2+4=6;5*6=0;6+0=6;``.

In both it makes *slips* (4% of steps): it writes a wrong result, notices at once, marks the step with ``!`` instead of
``;`` and does it again, ``2+4=7!2+4=6;``. So a teacher's distribution has a mode that low-temperature samples rarely
show (running total) and a behaviour that they hardly ever show (noticing a slip): what distillation at different
temperatures picks up can be measured.

Problems are divided by a hash of their text, so that no problem is ever in two splits: 10% validation, 15% test, 75%
training. Run as a script, this module writes the prompt files ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``, and
``slips.jsonl``: test problems with the beginning of a trace whose last step is wrong, for whoever goes on to notice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "test"]
Mode = Literal["products_first", "running_total"]

LENGTHS: tuple[int, ...] = (2, 3, 4, 5)  # products in a problem
PROMPT_COUNTS: dict[Split, int] = {"train": 4000, "validation": 1000, "test": 1500}
SLIPS_COUNT = 500
MODE_WEIGHTS: dict[Mode, float] = {"products_first": 0.7, "running_total": 0.3}
SLIP_RATE = 0.04

# Any fixed value: it makes the ids of this problem set differ from other sets' ids of the same text.
_UUID_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "dasd-megatron/examples/toy")
_RESPONSE = re.compile(r"<think>[^<]*</think>(\d)")


def split_of(problem: str) -> Split:
    """The split that a problem belongs to, by a hash of its text."""
    bucket = int(hashlib.sha256(problem.encode()).hexdigest()[:8], 16) % 100
    if bucket < 10:
        return "validation"
    return "test" if bucket < 25 else "train"


def draw_problem(rng: random.Random, split: Split, lengths: Sequence[int] = LENGTHS) -> str:
    """One problem of a split; its number of products is drawn from ``lengths``."""
    while True:
        length = rng.choice(lengths)
        problem = "+".join(f"{rng.randint(2, 9)}*{rng.randint(2, 9)}" for _ in range(length)) + "?"
        if split_of(problem) == split:
            return problem


def distinct_problems(split: Split, count: int, seed: int, lengths: Sequence[int] = LENGTHS) -> list[str]:
    """``count`` different problems of a split, always the same ones for the same arguments."""
    rng = random.Random(seed)
    problems: dict[str, None] = {}  # a dict, because it keeps the order in which they were drawn
    while len(problems) < count:
        problems[draw_problem(rng, split, lengths)] = None
    return list(problems)


def parse_terms(problem: str) -> list[tuple[int, int]]:
    """The factors of each product: ``3*4+7*2?`` -> ``[(3, 4), (7, 2)]``."""
    return [(int(term[0]), int(term[2])) for term in problem.rstrip("?").split("+")]


def answer_of(problem: str) -> str:
    """The right answer, one digit."""
    return str(sum(a * b for a, b in parse_terms(problem)) % 10)


def is_correct(problem: str, response: str) -> bool:
    """Whether a complete response (without its end-of-turn token) ends in the right answer."""
    match = _RESPONSE.fullmatch(response)
    return match is not None and match[1] == answer_of(problem)


def draw_mode(rng: random.Random) -> Mode:
    """A mode, as often as the teacher uses it."""
    return rng.choices(list(MODE_WEIGHTS), weights=list(MODE_WEIGHTS.values()))[0]


def write_trace(problem: str, mode: Mode, rng: random.Random, slip_rate: float = SLIP_RATE) -> str:
    """One worked response to a problem: ``<think>steps;...</think>D``."""
    steps: list[str] = []

    def work(left: int, operator: str, right: int) -> int:
        result = (left * right if operator == "*" else left + right) % 10
        while rng.random() < slip_rate:
            steps.append(f"{left}{operator}{right}={(result + rng.randint(1, 9)) % 10}!")
        steps.append(f"{left}{operator}{right}={result};")
        return result

    terms = parse_terms(problem)
    if mode == "products_first":
        digits = [work(a, "*", b) for a, b in terms]
        total = digits[0]
        for digit in digits[1:]:
            total = work(total, "+", digit)
    else:
        total = work(terms[0][0], "*", terms[0][1])
        for a, b in terms[1:]:
            total = work(total, "+", work(a, "*", b))
    return f"<think>{''.join(steps)}</think>{total}"


def begin_with_slip(problem: str, rng: random.Random) -> str:
    """A trace of the commoner mode without slips, up to the result of one of its steps, which is wrong."""
    steps = write_trace(problem, "products_first", rng, slip_rate=0.0).partition("</think>")[0].split(";")[:-1]
    place = rng.randrange(len(steps))
    step, result = steps[place].rsplit("=", 1)
    wrong = (int(result) + rng.randint(1, 9)) % 10
    return "".join(f"{before};" for before in steps[:place]) + f"{step}={wrong}"


def prompt_records(split: Split, count: int, seed: int) -> Iterator[dict[str, str]]:
    """The lines of a prompt file. The id depends on the text alone."""
    for problem in distinct_problems(split, count, seed):
        yield {
            "uuid": str(uuid.uuid5(_UUID_NAMESPACE, problem)),
            "input": problem,
            "domain": "math",
            "answer": answer_of(problem),
        }


def write_prompt_file(path: Path, split: Split, count: int, seed: int) -> None:
    """Write one prompt file, a JSON object a line."""
    lines = [json.dumps(record) for record in prompt_records(split, count, seed)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_slips_file(path: Path, count: int, seed: int) -> None:
    """Write test problems with begun answers, a JSON object a line."""
    rng = random.Random(seed)
    lines = []
    for record in prompt_records("test", count, seed):
        lines.append(json.dumps({**record, "answer_start": begin_with_slip(record["input"], rng)}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_problems(path: Path) -> list[str]:
    """The problem texts of a prompt file."""
    return [json.loads(line)["input"] for line in path.read_text(encoding="utf-8").splitlines()]


def build_parser() -> argparse.ArgumentParser:
    """The command line of the script."""
    parser = argparse.ArgumentParser(
        description="Write the prompt files of the toy problem (the last digit of a sum of products): "
        "train.jsonl, validation.jsonl, test.jsonl and slips.jsonl. The same seed always gives the same files.",
        epilog="example: python examples/toy/problems.py --output /tmp/prompts --seed 0",
    )
    here = Path(__file__).resolve().parent
    parser.add_argument(
        "--output", type=Path, default=here, help="folder to write to (default: the folder of this script)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawn problems (default: %(default)s)")
    return parser


def main() -> None:
    """Write the three prompt files."""
    args = build_parser().parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for split, count in PROMPT_COUNTS.items():
        path = args.output / f"{split}.jsonl"
        write_prompt_file(path, split, count, args.seed)
        print(f"{path}: {count:,} problems")
    write_slips_file(args.output / "slips.jsonl", SLIPS_COUNT, args.seed)
    print(f"{args.output / 'slips.jsonl'}: {SLIPS_COUNT:,} problems with begun answers")


if __name__ == "__main__":
    main()
