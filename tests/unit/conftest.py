"""Unit tests run in the images, too, and those have no launcher."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("nemo_run") else ["test_job_scripts.py", "test_watching.py"]
