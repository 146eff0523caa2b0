"""From text to batches: corpora, tokenizer, shards on disk, and the stream of packed rows.

Preparation (everything but packing, stream and datamodule) needs no torch, so that its processes start at once.
"""
