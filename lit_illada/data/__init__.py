"""Data, from text to batches: corpora, tokenizer, shards on disk, packed rows and data modules.

Preparation imports no torch, so that its processes start fast.
"""
