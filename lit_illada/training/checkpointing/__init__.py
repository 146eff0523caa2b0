"""Saving, retention, reading and rollback of a run's checkpoints."""
