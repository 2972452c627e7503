"""Typed recipes: every setting with its type, its default and the reason for it. Imports neither torch nor engines."""
