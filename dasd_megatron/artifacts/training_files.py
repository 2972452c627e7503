"""Names inside a training artifact that are read without torch."""

# One JSON line an optimizer step.
METRICS = "metrics.jsonl"
# One JSON line a checkpoint: after which step, and how long it took.
SAVES = "saves.jsonl"
# Weights of the finished stage, and of the imported student.
CHECKPOINT = "checkpoint"
# Of a rehearsal: the stage has been killed on purpose.
KILLED = ".killed"
