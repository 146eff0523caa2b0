"""Likelihoods and scores of text, computed alike for every training objective."""
