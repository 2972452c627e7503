"""What commands exit with: 0 when done, 2 for a mistake of the user or a failed step, 75 when told to stop, 130 for Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dasd_megatron.utils.errors import Stopped, UserError


def exit_code_of(run: Callable[[], int]) -> int:
    """Runs a command; what a user can do something about becomes one message and an exit code."""
    try:
        return run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        if stopped.args:
            print(stopped, file=sys.stderr)
        return Stopped.EXIT_CODE
    except KeyboardInterrupt:
        print("stopped; the same command resumes from here", file=sys.stderr)
        return 130
