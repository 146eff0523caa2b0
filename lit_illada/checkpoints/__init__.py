"""Reads, converts and writes checkpoints: ours, Hugging Face's layouts, safetensors files."""
