"""Verifiable tasks and answer parsing; needs no torch."""
