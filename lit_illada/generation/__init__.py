"""Text generation: block-by-block denoising (`generate`), autoregressive decoding, and their config."""
