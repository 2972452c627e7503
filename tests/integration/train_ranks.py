"""One rank of a training step described by a file (see tests/models.py), for torchrun: -m tests.integration.train_ranks FILE."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dasd_megatron.artifacts.artifact import ArtifactWriter
from dasd_megatron.launch.process import die_with_launcher
from dasd_megatron.step import StepContext


def main() -> None:
    die_with_launcher()
    from dasd_megatron.training.train import run

    content = json.loads(Path(sys.argv[1]).read_text())
    inputs = {name: Path(path) for name, path in content["inputs"].items()}
    output = ArtifactWriter(Path(content["output"]), {})
    run(StepContext(content["name"], content["config"], inputs, output, content["execution"]))


if __name__ == "__main__":
    main()
