"""Runs the steps of a recipe on a Slurm cluster, through NeMo-Run."""
