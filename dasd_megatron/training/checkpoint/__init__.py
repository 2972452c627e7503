"""Checkpoints of a training stage: what is in them, how they are written while training continues, and which are kept."""
