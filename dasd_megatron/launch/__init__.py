"""Runs the steps of a recipe."""
