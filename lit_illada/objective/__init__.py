"""The training objectives: how tokens are masked, and how predictions of them are weighted."""
