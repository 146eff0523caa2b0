"""Sweeps: plans, runs and reports many runs that differ in named settings, without torch."""
