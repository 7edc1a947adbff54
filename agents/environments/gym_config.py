"""How an environment of gymnasium is named in a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polydistill.config.plain_yaml import parse_value
from polydistill.errors import require_at_least
from polydistill_agents.environments.gym_task import GymTask, open_environment


@dataclass(frozen=True)
class EnvironmentConfig:
    """An environment of gymnasium.

    Args:
        env: id of gymnasium, like CartPole-v1.
        env_package: module to import first, which registers the id.
        env_kwargs: options of the environment, like [gravity=9.8].
        env_max_steps: games are cut after so many steps; 0: the environment's own limit.
        wrappers: around it, the innermost first: a name of gymnasium.wrappers, VecFrameStack:4, or module:function.
    """

    env: str = ""
    env_package: str = ""
    env_kwargs: tuple[str, ...] = ()
    env_max_steps: int = 0
    wrappers: tuple[str, ...] = ()

    def open_environment(self, teacher_wrappers: Sequence[str] = ()) -> GymTask:
        """The task that is named.

        Raises:
            UserError: an unknown name, or a package that is missing.
            ValueError: an option that cannot be read.
        """
        if not self.env:
            raise ValueError("env is needed: the id of what is played, like CartPole-v1")
        require_at_least(0, self, "env_max_steps")
        return open_environment(
            self.env,
            package=self.env_package,
            wrappers=self.wrappers,
            env_kwargs=dict(_option(text) for text in self.env_kwargs),
            max_steps=self.env_max_steps or None,
            teacher_wrappers=teacher_wrappers,
        )

    def store_names(self, task: GymTask) -> None:
        """Put the names that were found in the place of those that were given."""
        object.__setattr__(self, "env_package", task.package)
        object.__setattr__(self, "env", task.name)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"env_kwargs holds options like gravity=9.8, got {text!r}")
    return name, parse_value(value)
