"""Evaluations of a checkpoint: multiple choice, numeric problems, texts, held-out data, chained arithmetic, lm-eval."""
