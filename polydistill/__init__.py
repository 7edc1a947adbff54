"""Distil a trained network into its own twin, or into a smaller one.

The losses are in :mod:`polydistill.losses`. Importing this package alone loads nothing else, not even
torch; agents of Stable-Baselines3 are in the package ``polydistill_agents``.
"""

__version__ = "0.1.0"
