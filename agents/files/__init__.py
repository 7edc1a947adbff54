"""Files of agents: read without executing anything of them, and written so that stock Stable-Baselines3 opens them."""
