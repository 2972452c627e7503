"""What a process finds set around it, as in an image: library paths, and whether caches have a place. The last line is JSON."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from dasd_megatron.utils.caches import use_writable_caches


def main() -> None:
    """Entry point."""
    variables = dict(os.environ)
    use_writable_caches(variables)
    folders = [
        Path(variables.get("XDG_CACHE_HOME", Path.home() / ".cache")),
        Path(variables.get("TRITON_HOME", Path.home())),
    ]
    print(
        json.dumps(
            {
                "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
                "user": os.getuid(),
                "caches": [str(folder) for folder in folders],
                "caches_can_be_written": all(map(_can_be_written, folders)),
            }
        )
    )


def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    main()
