"""Strategies, rank supervision and activation checkpointing."""
