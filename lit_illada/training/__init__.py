"""Training: the Lightning module, its optimizers, schedules and callbacks."""
