"""Engines that sample from a model and score text under it."""
