"""Distil a trained network into its own twin, or into a smaller one.

The losses are in :mod:`polydistill.losses`. Importing this package alone loads nothing else, not even
torch; Atari agents are in the package ``agents`` beside it.
"""

__version__ = "0.1.0"
