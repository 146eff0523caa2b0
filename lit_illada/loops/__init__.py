"""Finds reasoning loops in generated texts of any model, counts them and shows them. Nothing here needs torch."""
