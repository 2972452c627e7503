"""Comparison of two formulas by math-verify, in a process that ends where one takes too long."""

from __future__ import annotations

import logging
import resource
import signal
import sys
from functools import cache

from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.piped_process import PipedProcess, parent_connection

THIS = "dasd_megatron.grading.math_process"
# CPU seconds of a comparison, and bytes of memory.
SECONDS, MEMORY = 5.0, 4 * 1024**3


class MathProcess:
    """The parent's side. The process is started when it's needed, and again after it has ended."""

    def __init__(self) -> None:
        self._process: PipedProcess | None = None

    @staticmethod
    @cache
    def shared() -> MathProcess:
        """This process's own."""
        return MathProcess()

    def equal(self, reference: str, answer: str) -> bool:
        """Whether both have the same value.

        Raises TimeoutError where that takes too long, UserError where the process has failed.
        """
        for left in (1, 0):
            if self._process is None:
                self._process = PipedProcess(THIS, "the process that compares formulas", "grade with fewer processes")
            self._process.send((reference, answer))
            try:
                return bool(self._process.receive())
            except UserError:
                code, self._process = self._process.exit_code, None
                if code == -signal.SIGPROF:
                    raise TimeoutError from None
                if not left:
                    raise
        raise AssertionError("unreachable")


def main() -> None:
    """The child's side."""
    from math_verify import parse, verify
    from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

    logging.disable(logging.CRITICAL)
    sys.set_int_max_str_digits(0)  # CPU time limits them
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    ways = [LatexExtractionConfig(), ExprExtractionConfig()]

    def value(text: str) -> list[object]:
        found: list[object] = parse(f"\\boxed{{{text}}}", ways, parsing_timeout=None)
        return found

    connection = parent_connection()
    while True:
        try:
            reference, answer = connection.recv()
        except EOFError:
            return
        # Its signal ends the process: whatever sympy is at, CPU time counts, and what it catches doesn't.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            equal = verify(value(reference), value(answer), timeout_seconds=None)
        except (MemoryError, RecursionError, ArithmeticError, ValueError):  # formulas that have no value
            equal = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(equal)


if __name__ == "__main__":
    main()
