"""Reasoning loops: found in generated texts of any model, counted, and shown. Nothing here needs torch."""
