"""Text sources: which documents a corpus has, deduplication and splits."""
