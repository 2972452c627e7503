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

    longest: dict[EngineRole, Positive]
    """Tokens of the longest sequence that the run may ask each role's model for."""

    typical: dict[EngineRole, tuple[Positive, Positive]]
    """Mean tokens of a sequence while the run decodes it, and how many of them an engine has room for; of the roles and GPUs that
    are known."""

    scores: list[EngineRole]
    """Roles whose models score in the run, too."""

    setting: str
    """A hash of what shapes no result, and yet whether and how fast it comes: layout, engines, resources, images, versions. With
    another one, stages and probes run again."""
