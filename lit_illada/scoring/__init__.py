"""Numbers by which arms are compared, the same whatever objective trained them."""
