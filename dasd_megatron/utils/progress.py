"""Progress of long work: a bar with rate and time left on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Never

from tqdm import tqdm

_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
LOG_INTERVAL = 15.0  # seconds between lines where standard error is no terminal


class Progress:
    """Counts `total` units of work; use as a context manager. The unit "B" (bytes) is shown in kB, MB or GB."""

    def __init__(self, label: str, total: int | None, unit: str, done: int = 0) -> None:
        """`total`: None as long as it isn't known."""
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self._first, self._start = done, time.monotonic()
        self._logged = self._start
        self._bar: tqdm[Never] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=done, desc=label, unit=unit, unit_scale=unit == "B", dynamic_ncols=True
            )

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Sets the count reached, with a short note such as the loss; and the total, where it is known better by now."""
        self.total = total or self.total
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self.done)
        changed, self.done = done != self.done, done
        now = time.monotonic()
        if self._bar is None and (now - self._logged > LOG_INTERVAL or (changed and done == self.total)):
            self._logged = now
            rate = (done - self._first) / max(now - self._start, 1e-9)
            left, counts = "", [done] if self.total is None else [done, self.total]
            if self.total is not None and rate > 0 and done < self.total:
                left = f", {(self.total - done) / rate:.0f} s left"
            print(
                f"{self.label}: {self._amounts(*counts)}, {self._amounts(rate)}/s{left} {note}".rstrip(),
                file=sys.stderr,
                flush=True,
            )

    def _amounts(self, *counts: float) -> str:
        if self.unit != "B":
            return (
                "/".join(f"{count:.1f}" if isinstance(count, float) else str(count) for count in counts)
                + f" {self.unit}"
            )
        return amount(*counts)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def amount(*counts: float) -> str:
    """Bytes in kB, MB or GB, all in the unit that suits the last: "1.5/8.0 GB"."""
    scale, unit = next((pair for pair in _BYTES if counts[-1] >= pair[0]), _BYTES[-1])
    return "/".join(f"{count / scale:.1f}" for count in counts) + f" {unit}"
