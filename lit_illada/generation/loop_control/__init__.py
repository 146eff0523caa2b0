"""Mitigations of reasoning loops, wrapped around the plain samplers."""
