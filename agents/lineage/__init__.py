"""Lineages of agents: what decides a run, and what is told of it."""
