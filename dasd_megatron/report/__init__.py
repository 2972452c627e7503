"""Figures and one HTML page a run."""
