"""Style, palette and charts that the report pages of sweeps and of loops share."""
