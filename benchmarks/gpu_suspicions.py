"""What was suspected of GPUs before any was at hand, and what a check of GPUs says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
# Differences that count.
NOTICEABLE = 1.05


@dataclass(frozen=True)
class Suspicion:
    """Something that may cost time or fail.

    Attributes:
        name: a letter.
        text: what is suspected.
        check: whose result tells.
        conclude: a result in words; None where it doesn't tell: too few GPUs, say.
        otherwise: what would be needed to tell.
    """

    name: str
    text: str
    check: str
    conclude: Callable[[Any], str | None]
    otherwise: str


def _attention(rows: Sequence[Row]) -> str | None:
    """cuDNN beside FlashAttention, at each length of documents."""
    times: dict[int, dict[str, float]] = {}
    for row in rows:
        if "ms" in row:
            times.setdefault(row["length"], {})[row["backend"]] = row["ms"]
    ratios = {
        length: found["cudnn"] / min(ms for name, ms in found.items() if name != "cudnn")
        for length, found in times.items()
        if "cudnn" in found and len(found) > 1
    }
    return ", ".join(f"{ratio:.2f} x at {length:,}" for length, ratio in sorted(ratios.items())) or None


def _context(rows: Sequence[Row]) -> str | None:
    """The fastest split of each length beside the slowest."""
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        if row["layout"].startswith("context="):
            found.setdefault(row["tokens"], {})[row["layout"]] = row["tokens_per_second_a_gpu"]
    if not any(len(of_length) > 1 for of_length in found.values()):
        return None
    said = []
    for tokens, of_length in found.items():
        best, worst = (choose(of_length, key=lambda name: of_length[name]) for choose in (max, min))
        ratio = (
            f"is {of_length[best] / of_length[worst]:.2f} x as fast as {worst}" if best != worst else "alone was run"
        )
        said.append(f"{tokens:,} tokens: {best} {ratio}")
    return "; ".join(said)


def _experts(rows: Sequence[Row]) -> str | None:
    """Experts computed again, beside whole layers."""
    times = {
        (row["layout"].rpartition("=")[2], row["tokens"]): (row["ms"], row["gib"])
        for row in rows
        if row["layout"].startswith("experts")
    }
    said = []
    for tokens in sorted({tokens for _, tokens in times}):
        none, again = times["none", tokens], times["selective", tokens]
        said.append(
            f"{tokens:,} tokens: {again[0] / none[0]:.2f} x the time, {again[1] / max(none[1], 1e-9):.2f} x the memory"
        )
    return "; ".join(said) or None


def _scheduler(rows: Sequence[Row]) -> str | None:
    rates = {row["engine"]: row.get("tokens_per_second") for row in rows}
    own, one = rates.get("scheduler in its own"), rates.get("one process")
    if not own or not one:
        return None
    ratio = own / one
    return f"{ratio:.2f} x with the scheduler in a process of its own: " + (
        "worth it" if ratio > NOTICEABLE else "not worth it"
    )


def _restart(rows: Sequence[Row]) -> str | None:
    found = {row["engine"]: row for row in rows}.get("two GPUs, at once again")
    if found is None:
        return None
    return (
        "the next engine fails" if "problem" in found else f"the next engine starts, in {found['load_seconds']:.1f} s"
    )


def _environment(found: Mapping[str, Any]) -> str | None:
    paths = found["LD_LIBRARY_PATH"] or "not set"
    return f"LD_LIBRARY_PATH: {paths}; caches can {'' if found['caches_can_be_written'] else 'NOT '}be written"


SUSPICIONS = (
    Suspicion("A", "cuDNN's attention is slow for packs of short documents", "attention", _attention, "FlashAttention"),
    Suspicion("B", "CP8 at 32K tokens waits for the host", "layouts", _context, "two GPUs"),
    Suspicion("C", "computing experts again exchanges tokens again", "layouts", _experts, "that check"),
    Suspicion("D", "vLLM's scheduler on the engine's thread costs time", "engine_speed", _scheduler, "vLLM"),
    Suspicion("E", "an engine on two GPUs that ends holds memory for a while", "engine_speed", _restart, "two GPUs"),
    Suspicion(
        "F",
        "an image hands on library paths, and has no place for caches",
        "environment",
        _environment,
        "the check environment",
    ),
)


def suspicion_lines(checks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table of Markdown: each suspicion, and what was found. `checks`: results by name."""
    table = ["| | suspected | found |", "| --- | --- | --- |"]
    for suspicion in SUSPICIONS:
        result = checks.get(suspicion.check, {}).get("result")
        said = None if result is None else suspicion.conclude(result)
        table.append(f"| {suspicion.name} | {suspicion.text} | {said or f'not known: needs {suspicion.otherwise}'} |")
    return table
