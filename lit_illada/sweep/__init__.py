"""Sweeps: many runs that differ in a few named things, planned, run and kept in one folder, without torch."""
