"""Unit tests run in the images, too, and those have no launcher."""

from __future__ import annotations

from importlib.util import find_spec

LAUNCHER = ["test_slurm_job_scripts.py", "test_slurm_monitor.py", "test_costs.py", "test_paper_recipes.py"]
collect_ignore = [] if find_spec("nemo_run") else LAUNCHER
