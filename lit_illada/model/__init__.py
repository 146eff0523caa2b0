"""The network: what it is (config), what it computes (transformer) and what that costs (flops)."""
