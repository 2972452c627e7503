"""Artifacts: the only code that writes data files."""
