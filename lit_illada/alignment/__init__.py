"""The mathematics of RL alignment: likelihood estimators, rewards, advantages, losses, regularisers."""
