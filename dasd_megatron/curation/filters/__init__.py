"""Filters of responses, one file each."""
