"""What a step does where it has nothing to hand on."""

from __future__ import annotations

import sys

from dasd_megatron.steps.step import StepConfig
from dasd_megatron.utils.errors import UserError


def refuse_empty(config: StepConfig, message: str) -> None:
    """Raises UserError; in a rehearsal, whose little data says nothing of the run's, prints the message as a note."""
    if not config.may_be_empty:
        raise UserError(message)
    print(f"note: {message}", file=sys.stderr)
