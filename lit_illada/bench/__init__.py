"""Measurements of this machine: `lit-illada bench`."""
