"""The doctor's visit to a lineage of agents, see :func:`~polydistill.lineage.run_lineage`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from polydistill.lineage import Generation
from polydistill.losses import Finding, doctor
from polydistill.losses.examination.doctor import Report
from polydistill.streams import numpy_stream
from polydistill_agents.environments.random_play import no_better_than_random
from polydistill_agents.environments.references import Reference
from polydistill_agents.lineage.students import AnyConfig, make_env, make_student
from polydistill_agents.networks.observations import Arrays, Tensors, count_rows, join, take, to_tensors
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

    def forward(self, rows: Tensor) -> Tensor:
        return self.function(rows)


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
    act = model.actor(numpy_stream(config.seed, "examination", generation))
    states: list[Tensors] = []
    labels: list[Tensor] = []
    shown: Arrays = env.reset()
    teacher.begin(env.num_envs)
    starts = np.ones(env.num_envs, dtype=bool)
    for _ in range(min(-(-STATES // env.num_envs), teacher.n_rows)):
        states.append(to_tensors(shown, config.device))
        labels.append(model.label(env, states[-1], starts))
        shown, _, starts, _ = env.step(act(states[-1], labels[-1]))
    env.close()
    seen, targets = join(states), torch.cat(labels)
    return doctor(  # it passes rows on: not all observations are one tensor, and not all teachers see the student's
        _Scores(model.student, lambda rows: model.student(take(seen, rows)), training=True),
        _Scores(teacher.network, lambda rows: targets[rows], training=False),
        model.lesson.objective,
        torch.arange(count_rows(seen), device=targets.device),
        **model.lesson.options(),
    )
