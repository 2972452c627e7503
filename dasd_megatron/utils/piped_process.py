"""A child process that takes objects and gives objects, through a pipe; it ends with this one."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from dasd_megatron.utils.child_process import child_options
from dasd_megatron.utils.errors import UserError


class PipedProcess:
    """The parent's side. What the child runs finds its own side with `parent_connection`."""

    def __init__(
        self,
        module: str,
        name: str,
        out_of_memory: str,
        variables: Mapping[str, str] | None = None,
        without: Iterable[str] = (),
    ) -> None:
        """Starts `python -m module`.

        Args:
            name: what it is, for messages.
            out_of_memory: what to do where it needs more memory than there is.
            variables: of its environment, beyond those of this process.
            without: variables of this process that it doesn't get.
        """
        self._name, self._out_of_memory = name, out_of_memory
        self._connection, child = Pipe()
        end_with_parent, environment = child_options()

        def in_child() -> None:
            end_with_parent()
            signal.signal(
                signal.SIGINT, signal.SIG_IGN
            )  # Ctrl-C ends the parent, and that this process, without a word

        kept = {key: value for key, value in environment.items() if key not in set(without)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(child.fileno())],
            env={**kept, **(variables or {})},
            preexec_fn=in_child,
            pass_fds=[child.fileno()],
            stdin=subprocess.DEVNULL,
        )
        child.close()

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Of the child, negative: of the signal that ended it; None while it lives."""
        return self._process.poll()

    def fileno(self) -> int:
        """For `multiprocessing.connection.wait`: readable when `receive` returns at once."""
        return self._connection.fileno()

    def send(self, message: object) -> None:
        """Gives the child an object. Where it has ended, `receive` says why."""
        with contextlib.suppress(ConnectionError):
            self._connection.send(message)

    def receive(self) -> Any:
        """Waits for the child's next object. Raises UserError where that is one, or where the child has ended."""
        try:
            found = self._connection.recv()
        except (EOFError, ConnectionError):
            code = self._process.wait()
            remedy = "its message is above"
            if code == -signal.SIGKILL:
                remedy = f"where memory ran out, {self._out_of_memory}"
            raise UserError(f"{self._name} ended (exit code {code}); {remedy}") from None
        if isinstance(found, UserError):
            raise found
        return found

    def kill(self) -> None:
        """Ends the child, and waits until it has ended."""
        self._process.kill()
        self._process.wait()


def parent_connection() -> Connection[Any, Any]:
    """The child's side of the pipe; it ends with the parent, with an EOFError."""
    return Connection(int(sys.argv[1]))
