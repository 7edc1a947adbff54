"""Atari games and gymnasium environments: played, scored, recorded; games filmed."""
