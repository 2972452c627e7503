"""What has nothing to do with distillation: durable files, locks, hashes, progress, signals, registries."""
