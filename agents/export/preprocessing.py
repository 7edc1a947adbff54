"""In words, what happens to an observation: in the graph, and before it, where whoever runs the file must do it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from polydistill_agents.environments.gym_task import GymTask
from polydistill_agents.environments.task import AtariTask, Task
from polydistill_agents.export.graph import INPUT
from polydistill_agents.networks.normalized import Normalized
from polydistill_agents.teachers import Teacher

ATARI = (
    "every fourth frame is seen: the brighter of each pixel of it and of the frame before, grey, resized to 84 x 84",
    "the last four that are seen are stacked, the newest last: (4, 84, 84)",
)
CHANNELS_FIRST = "images have their channels first: {}"


def in_graph(network: nn.Module, space: spaces.Space[Any]) -> list[str]:
    """A line for each thing that the graph does to its inputs; none: it takes them as they are.

    Args:
        network: that is exported.
        space: of the observations.
    """
    lines = []
    while isinstance(network, Normalized):
        lines.append(
            f"{INPUT}: minus the mean, over the deviation of the agent's VecNormalize, clipped at {network.clip:g}"
        )
        network = network.network
    inner: Any = getattr(network, "quantile_net", getattr(network, "policy", network))
    over_255 = getattr(inner, "normalize_images", True)
    return [*lines, *(f"{name}: {what}" for name, part in _parts(space) if (what := _done_to(part, over_255)))]


def before_graph(task: Task, teacher: Teacher) -> list[str]:
    """A line for each thing that must be done before the graph, or after it.

    Args:
        task: what the agent plays.
        teacher: that is exported.
    """
    lines = list(ATARI) if isinstance(task, AtariTask) else []
    if isinstance(task, GymTask):
        if task.wrappers:
            lines.append(f"wrappers around the environment, the innermost first: {', '.join(task.wrappers)}")
        images = [f"{name} {part.shape}" for name, part in _parts(task.observation_space) if is_image_space(part)]
        if images:
            lines.append(CHANNELS_FIRST.format(", ".join(images)))
    if teacher.masks:
        lines.append("the scores of actions that the environment's masks forbid are set to -inf before one is chosen")
    return lines


def _parts(space: spaces.Space[Any]) -> Iterator[tuple[str, spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        for key, part in sorted(space.items()):
            yield f"{INPUT}.{key}", part
    else:
        yield INPUT, space


def _done_to(space: spaces.Space[Any], over_255: bool) -> str:
    """What Stable-Baselines3 does to such an observation; empty: it takes it as it is."""
    match space:
        case spaces.Discrete():
            return f"one-hot of {space.n}"
        case spaces.MultiDiscrete():
            return f"one-hot of {' + '.join(map(str, cast(Any, space.nvec)))}"
        case spaces.Box() if over_255 and is_image_space(space):
            return "pixels over 255"
    return ""
