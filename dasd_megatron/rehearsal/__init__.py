"""A run in minutes, before the run: does every job work, how fast is it, and what will the whole cost?"""
