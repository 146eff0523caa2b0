"""Slurm: its client and the job scripts."""
