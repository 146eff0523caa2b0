"""The network: transformer, attention kernels, LM head, LoRA adapters, FLOP counts, and their config."""
