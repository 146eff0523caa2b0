"""Detectors: units of a text, kinds of loops in it, and how it ends."""
