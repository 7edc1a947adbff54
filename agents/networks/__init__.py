"""The networks of agents: what gives scores of actions."""
