"""Benchmarks of this machine: `lit-illada bench`."""
