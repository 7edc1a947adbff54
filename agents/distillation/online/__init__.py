"""Students that learn while their teacher does (Rusu et al. 2016, section 4.5), from what the teacher has just seen."""

from polydistill_agents.distillation.online.callback import DistillCallback

__all__ = ["DistillCallback"]
