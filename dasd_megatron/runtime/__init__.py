"""Runs steps on this machine: one process a step, replicas of engines, ranks of training."""
