"""What makes a recipe that of a rehearsal: `rehearsal`."""

from __future__ import annotations

from dasd_megatron.config.base import Config, Positive
from dasd_megatron.config.sampling import EngineRole


class RehearsalConfig(Config):
    """Written by `dasd launch --rehearse` into the recipe of a rehearsal; there is nothing here to set by hand.

    Stages of a rehearsal train on worst-case packs, and are killed once; each engine is probed.
    """

    engines: dict[EngineRole, Positive]
    """How many engines of each role the steps of the run have side by side."""
