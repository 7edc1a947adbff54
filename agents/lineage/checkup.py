"""The doctor's visit to a lineage of agents, see :func:`~polydistill.lineage.run_lineage`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polydistill.lineage import Generation
from polydistill.losses import Finding, doctor
from polydistill.losses.examination.doctor import Report
from polydistill.streams import numpy_stream
from polydistill_agents.environments.random_play import no_better_than_random
from polydistill_agents.environments.references import Reference
from polydistill_agents.lineage.course import AnyConfig, make_env, make_student
from polydistill_agents.networks.observations import Arrays, count_rows, join, take, to_tensors
from polydistill_agents.teachers import Teacher

STATES = 512
LEAST_GAMES = 5  # fewer say nothing
MARGIN = 0.05  # of the way from random play to a human: less is no play


def judge_play(scores: Sequence[float], row: Reference | None) -> Iterator[Finding]:
    """Whether a teacher plays better than at random: what stands for its accuracy, since games have no labels.

    Args:
        scores: of its games; none: it was not scored.
        row: scores that they are compared with, where they are known.
    """
    n = len(scores)
    if row is None or not n:
        return
    mean = float(np.mean(scores))
    text = f"the teacher scores {mean:.4g} in {n} games (random play {row.random:g}, a human {row.human:g})"
    error = float(np.std(scores, ddof=1)) / n**0.5 if n > 1 else 0.0
    if n >= LEAST_GAMES and mean + 2.0 * error < row.random + MARGIN * (row.human - row.random):
        yield Finding("wrong", f"{text}: it plays at random; is it of this game, does it see what it was trained on?")
    elif mean - 2.0 * error <= row.random:
        yield Finding("cannot tell", f"{text}: so few do not tell whether it plays better than at random")
    else:
        yield Finding("fine", text)


class _Scores(nn.Module):
    """A function to scores that shows the doctor the network behind it."""

    def __init__(self, network: nn.Module | None, function: Callable[[Tensor], Tensor], *, training: bool) -> None:
        super().__init__()
        self.network, self.function = network, function
        self.training = training

    def forward(self, frames: Tensor) -> Tensor:
        return self.function(frames)


def examine(config: AnyConfig, generation: Generation[Teacher]) -> Report:
    """The doctor's report on what ``generation`` would teach, from its scores and play, and a new student."""
    metrics = generation.metrics
    played = list(judge_play(metrics["scores"], config.task.reference))
    if "random_scores" in metrics:
        why = no_better_than_random(metrics["scores"], metrics["random_scores"])
        better = f"the teacher scores {metrics['score_mean']:.4g}, random play {metrics['random_mean']:.4g}"
        played.append(Finding("fine", better) if why is None else Finding("cannot tell", why))
    report = examine_lesson(config, generation.member, generation.generation + 1)
    return report._replace(findings=(*played, *report.findings))


def examine_lesson(config: AnyConfig, teacher: Teacher, generation: int) -> Report:
    """The doctor's report on the lesson of ``generation``, from states that the teacher plays, and a new student."""
    env = make_env(config, teacher, generation)
    model = make_student(config, teacher, env, generation)
    model.policy.set_training_mode(True)
    act, states = model.actor(numpy_stream(config.seed, "examination", generation)), []
    shown: Arrays = env.reset()
    for _ in range(-(-STATES // env.num_envs)):
        states.append(to_tensors(shown, config.device))
        shown = env.step(act(states[-1], teacher(model.teachers_view(env, states[-1]))))[0]
    env.close()
    seen = join(states)
    rows = seen if isinstance(seen, torch.Tensor) else torch.arange(count_rows(seen))  # the doctor passes one tensor on

    def of_rows(function: Callable[[Any], Tensor]) -> Callable[[Tensor], Tensor]:
        return function if rows is seen else lambda chosen: function(take(seen, chosen))

    return doctor(
        _Scores(model.student, of_rows(model.student), training=True),
        _Scores(teacher.network, of_rows(teacher), training=False),
        model.lesson.objective,
        rows,
        **model.lesson.options(),
    )
