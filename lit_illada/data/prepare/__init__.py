"""Turns text into a prepared data set."""
