"""What a run will take before it runs: memory, tokens, GPU-hours, storage, and the resources of each job. No torch."""
