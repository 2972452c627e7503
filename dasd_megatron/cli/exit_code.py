"""What commands exit with: 0 when done, 2 for a mistake of the user or a failed step, 75 when told to stop, 130 for Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dasd_megatron.utils.errors import Stopped, UserError


def exit_code_of(run: Callable[[], int], stopped: str = "stopped; the same command resumes from here") -> int:
    """Runs a command; what a user can do something about becomes one message and an exit code.

    Args:
        stopped: what to say at Ctrl-C.
    """
    try:
        return run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as signal:
        if signal.args:
            print(signal, file=sys.stderr)
        return Stopped.EXIT_CODE
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
