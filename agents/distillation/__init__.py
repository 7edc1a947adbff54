"""Policy distillation as a Stable-Baselines3 algorithm."""
