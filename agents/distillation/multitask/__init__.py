"""One student of several tasks: each has games, a teacher, a replay and a head of its own (Rusu et al. 2016)."""

from polydistill_agents.distillation.multitask.algorithm import MultitaskDistillation

__all__ = ["MultitaskDistillation"]
