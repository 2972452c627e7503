"""Import and export of a model of Qwen3-4B's shape against a plain copy of the same files: time, and private memory.

  python -m benchmarks.convert                     # 8 GB of random bf16 weights under the working directory
  python -m benchmarks.convert --folder /scratch --layers 4

Copy and conversion take turns, both made durable (fsync), in the same state of the page cache: what is read has just been
read once (`warm`), or has been dropped from the cache (`cold`). Memory is anonymous memory of all processes together;
mapped pages of files don't count, the system takes them back when it wants.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil
import torch

from benchmarks.models import qwen3
from conversion.safetensors_writer import SafetensorsWriter, TensorToWrite

QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
SAMPLE = 0.02  # seconds between two looks at memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("benchmark-convert"), help="where to write, up to 25 GB")
    parser.add_argument("--layers", type=int, default=36, help="of the model; default: 36, Qwen3-4B's")
    parser.add_argument("--cache", choices=("warm", "cold"), default="warm")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    source, megatron, again, copied = (args.folder / name for name in ("hf", "megatron", "hf-again", "copy"))
    if not source.exists():
        random_weights(source, args.layers)
    convert = [sys.executable, "tools/convert.py"]
    importing = [*convert, "import", "--hf", str(source), "--megatron", str(megatron)]
    exporting = [*convert, "export", "--megatron", str(megatron), "--hf", str(again)]
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    print(f"{size / 1e9:.2f} GB, {os.cpu_count()} cores, cache {args.cache}, median of {args.repeats}")
    for label, command, read, written in (
        ("import", importing, source, megatron),
        ("export", exporting, megatron, again),
    ):
        copies, conversions, memory = [], [], 0
        for _ in range(args.repeats):
            for folder in (copied, again, written):
                shutil.rmtree(folder, ignore_errors=True)
            prepare(read, args.cache)
            copies.append(timed(lambda read=read: copy(read, copied)))  # type: ignore[misc]
            shutil.rmtree(copied)
            prepare(read, args.cache)
            seconds, peak = watched(command)
            conversions.append(seconds)
            memory = max(memory, peak)
        a, b = median(copies), median(conversions)
        print(f"{label}: {b:.1f} s, copy {a:.1f} s, ratio {b / a:.2f}, peak private memory {memory / 2**30:.2f} GiB")
    shutil.rmtree(args.folder)


def random_weights(folder: Path, layers: int) -> None:
    """A model folder with random bf16 weights, written tensor by tensor."""
    hf = qwen3(folder, **QWEN3_4B, num_hidden_layers=layers)
    sizes = {name: size for part in hf.parts for name, size in zip(part.hf, part.hf_shapes, strict=True)}
    writer = SafetensorsWriter(folder, {name: TensorToWrite(size, torch.bfloat16) for name, size in sizes.items()})
    for name, size in sizes.items():
        writer.write(name, torch.empty(size, dtype=torch.bfloat16).normal_(std=0.02))
    writer.finish()


def prepare(folder: Path, cache: str) -> None:
    """Puts the files of `folder` into the page cache, or out of it."""
    os.sync()
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb", buffering=0) as file:
            if cache == "cold":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(1 << 24):
                    pass


def copy(source: Path, target: Path) -> None:
    """cp, made durable."""
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync", *map(str, filter(Path.is_file, target.rglob("*")))], check=True)


def timed(function: Callable[[], object]) -> float:
    """Seconds."""
    begin = time.monotonic()
    function()
    return time.monotonic() - begin


def watched(command: list[str]) -> tuple[float, int]:
    """Seconds that a command takes, and the most anonymous memory that all of its processes had together."""
    begin, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        ended = threading.Event()

        def wait() -> None:
            process.wait()
            ended.set()

        waiter = threading.Thread(target=wait)
        waiter.start()
        while not ended.wait(SAMPLE):
            peak = max(peak, anonymous(process.pid))
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.monotonic() - begin, peak


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process and its descendants; pages that they share count once."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss_Anon:"):
                    total += int(line.split()[1]) << 10
    except (psutil.NoSuchProcess, OSError):
        pass
    return total


if __name__ == "__main__":
    main()
