"""Atari games: played, scored, recorded, filmed."""
