"""Asks a model many questions: batched generation, multiple choice, lm-eval, held-out problems."""
