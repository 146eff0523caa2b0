"""Summaries of many outcomes, and differences between groups of them."""
