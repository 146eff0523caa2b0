"""Writing text with a masked-diffusion model: the loop (block) and which tokens it commits (selection)."""
