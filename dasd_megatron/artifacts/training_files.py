"""Files in a training artifact that are read without torch."""

# One JSON line a step.
STEPS = "steps.jsonl"
# One JSON line a checkpoint: after which step, and how long it took.
SAVES = "saves.jsonl"
