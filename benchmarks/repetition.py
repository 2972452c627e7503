#!/usr/bin/env python
"""What the filter `repeated` drops: of real code, which repeats itself and is no loop, and of degenerate texts, which are.

Code is files of installed Python packages and C headers of this machine, as plain text. Chains of thought are your own: a folder
with a text file of each, and another one of those that are known to be loops. The last line is JSON.

example:
  python -m benchmarks.repetition --chains chains/ --loops loops/
"""

from __future__ import annotations

import argparse
import json
import random
import sysconfig
import time
from collections.abc import Iterable
from pathlib import Path

from dasd_megatron.config.curation import FiltersConfig
from dasd_megatron.curation.filters.repetition import is_repeated

# Shorter files say little.
MIN_CHARS = 4000
LIMITS = FiltersConfig()


def code(folder: Path, pattern: str, count: int) -> list[str]:
    """The content of so many files, taken at random, the same ones each time."""
    paths = sorted(folder.glob(pattern))
    random.Random(0).shuffle(paths)
    contents = (path.read_text(errors="ignore") for path in paths if path.is_file())
    return [
        content for content, _ in zip((text for text in contents if len(text) > MIN_CHARS), range(count), strict=False)
    ]


def loops(text: str) -> dict[str, str]:
    """Degenerate endings of a text."""
    return {
        "cases with counting numbers": text
        + "".join(f"\nCase {n}: {n} + 1 = {n + 1}, which fails." for n in range(300)),
        "wait, hmm": text + " Wait. Hmm." * 1500,
        "and so on": text + " and so on" * 2500,
        "numbered lines": "".join(f"{n}. It holds for this number.\n" for n in range(900)),
        "the answer": text + " So the answer is 42." * 500,
    }


def chains(folder: Path) -> dict[bool, list[str]]:
    """The folder's texts by whether they are dropped."""
    found: dict[bool, list[str]] = {True: [], False: []}
    for path in sorted(folder.glob("*.txt")):
        found[is_repeated(path.read_text(errors="ignore"), LIMITS)].append(path.name)
    return found


def share(texts: Iterable[str]) -> float:
    """Of the texts that the filter drops."""
    found = [is_repeated(text, LIMITS) for text in texts]
    return sum(found) / max(1, len(found))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=Path, help="folder of long chains of thought, a .txt file each")
    parser.add_argument("--loops", type=Path, help="folder of such chains that end in loops")
    args = parser.parse_args()
    python = code(Path(sysconfig.get_path("purelib")), "*/**/*.py", 250)
    headers = code(Path("/usr/include"), "**/*.h", 120)
    prose = " ".join(python[:3])[:12_000]
    missed = [name for name, text in loops(prose).items() if not is_repeated(text, LIMITS)]
    start, characters = time.monotonic(), 0
    for text in python:
        is_repeated(text, LIMITS)
        characters += len(text)
    found: dict[str, object] = {
        "python_files": len(python),
        "python_dropped": share(python),
        "c_headers": len(headers),
        "c_dropped": share(headers),
        "loops": len(loops("")),
        "loops_missed": missed,
        "characters_per_second": round(characters / (time.monotonic() - start)),
    }
    if args.chains:
        decided = chains(args.chains)
        found |= {"chains": sum(map(len, decided.values())), "chains_dropped": decided[True]}
    if args.loops:
        decided = chains(args.loops)
        found |= {"real_loops": sum(map(len, decided.values())), "real_loops_missed": decided[False]}
    for name, value in found.items():
        print(f"{name.replace('_', ' '):>22}  {value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
