"""Typed recipes: what a distillation is, and the steps it implies."""
