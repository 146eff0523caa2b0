"""Saves, finds, reads and rolls back checkpoints of a run."""
