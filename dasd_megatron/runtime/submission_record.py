"""What is known of a run's latest submission: a file in the run folder, by which nodes know that they share it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dasd_megatron.utils.errors import UserError

SUBMISSION = "submission.json"


@dataclass(frozen=True)
class Submission:
    """Who submitted what, when and from where.

    Attributes:
        id: NeMo-Run's name of the experiment.
        folder: the experiment's folder on the cluster: scripts, code and logs.
        source: commit and changed files that were shipped; None where nothing was.
        jobs: ids by step; empty until all of them are submitted.
    """

    id: str
    user: str
    host: str
    time: str
    folder: str
    source: dict[str, Any] | None
    jobs: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """As the file holds it."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def parse(cls, text: str, where: object) -> Submission:
        """From the file's content. Raises UserError where it is damaged."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise UserError(f"{where}: damaged ({error}); delete it, and submit again") from None

    @classmethod
    def read(cls, path: Path) -> Submission:
        """From the file."""
        return cls.parse(path.read_text(), path)
