"""Accuracy and alignment of a model on held-out problems."""
