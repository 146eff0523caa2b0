"""Writing text: block by block (block) or token by token (autoregressive), and what may be chosen about it (config)."""
