"""Distillation of agents with discrete actions, an extension of Stable-Baselines3; the losses are ``polydistill``'s.

The folder is ``agents/``, the package ``polydistill_agents``. Importing it loads no emulator and no Stable-Baselines3:
each of its names is loaded when it is first asked for. It needs the extra atari, and says so where that is missing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from polydistill._environment import require_extra

if TYPE_CHECKING:
    from polydistill_agents.distillation.algorithm import PolicyDistillation
    from polydistill_agents.distillation.multitask import MultitaskDistillation
    from polydistill_agents.distillation.online import DistillCallback
    from polydistill_agents.environments.atari import AtariVecEnv
    from polydistill_agents.environments.evaluation import Evaluation, evaluate
    from polydistill_agents.environments.gym_task import open_environment
    from polydistill_agents.export import export_agent
    from polydistill_agents.teachers import Teacher, as_teacher
    from polydistill_agents.teachers.zoo import find_teacher

require_extra("atari")

_HOMES = {
    "AtariVecEnv": "environments.atari",
    "DistillCallback": "distillation.online",
    "Evaluation": "environments.evaluation",
    "MultitaskDistillation": "distillation.multitask",
    "PolicyDistillation": "distillation.algorithm",
    "Teacher": "teachers",
    "as_teacher": "teachers",
    "evaluate": "environments.evaluation",
    "export_agent": "export",
    "find_teacher": "teachers.zoo",
    "open_environment": "environments.gym_task",
}
__all__ = [
    "AtariVecEnv",
    "DistillCallback",
    "Evaluation",
    "MultitaskDistillation",
    "PolicyDistillation",
    "Teacher",
    "as_teacher",
    "evaluate",
    "export_agent",
    "find_teacher",
    "open_environment",
]


def __getattr__(name: str) -> Any:
    """The module of a name is imported at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
