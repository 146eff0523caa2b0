"""RL alignment: rollouts, rewards, likelihood estimators, policy losses, and their Lightning modules."""
