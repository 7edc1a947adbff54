"""The last student of a run learns on from rewards, and is scored again, in the games in which it was scored before.

See :mod:`polydistill_agents.distillation.learning_on`. It begins from the student's zip, and is short: a run that was
stopped in the middle begins it again and ends as an unbroken one would.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from stable_baselines3 import DQN
from stable_baselines3.common.logger import Logger

from polydistill.runs import Run
from polydistill.streams import derive_seed
from polydistill_agents.distillation.learning_on import Watch, learn_on
from polydistill_agents.environments.evaluation import Evaluation
from polydistill_agents.files.sb3_zip import write_dqn_zip
from polydistill_agents.lineage.agent_config import AgentConfig
from polydistill_agents.lineage.course import RunWriter
from polydistill_agents.lineage.curve import SCORE
from polydistill_agents.lineage.students import AnyConfig, seed_of_students
from polydistill_agents.teachers import Teacher, as_teacher

ROLE = "learning_on"
PRODUCT = "learned_on.zip"


class Cost(NamedTuple):
    """Samples learned from, games scored and steps in the replay of a student that learns on; else nothing."""

    samples: int = 0
    games: int = 0
    replay_steps: int = 0


Play = Callable[[Teacher, int, str], Evaluation]


def cost_after(config: AnyConfig) -> Cost:
    """What it costs that the last student learns on."""
    if not isinstance(config, AgentConfig) or config.learn_on.steps is None:
        return Cost()
    told, scored = config.learn_on.given, config.evaluation
    steps, every = told["steps"], told["curve_every_steps"]
    updates = (steps - told["learning_starts"]) // told["train_freq"] * told["gradient_steps"]
    points = -(-steps // every) if every else 0
    games = scored.episodes + points * scored.curve_episodes
    return Cost(updates * told["batch_size"], games, told["buffer_size"])


def score_after(
    config: AgentConfig, path: Path, student: Teacher, run: Run, play: Play, heed: Callable[[str], None]
) -> dict[str, Any]:
    """Let the student in ``path`` learn on, write what it becomes, and score that.

    Args:
        config: resolved, with steps of learning on.
        path: of its zip.
        student: it, as it was scored.
        run: gets the curve and the file.
        play: so many games of an agent in a random stream of that name; "evaluation" is that of the table.
        heed: asked at each step whether to leave, with what is going on.

    Returns:
        ``score_after`` and ``score_after_ci95``.

    Raises:
        UserError: the disk refused, or the environment fails.
        FloatingPointError: its scores are no longer finite.
    """
    settings, evaluation = config.learn_on, config.evaluation
    if student.kind == "logits":
        print(
            f"the student of {config.student.objective} gives logits, not Q-values: it learns on all the same, but a "
            "DQN takes them for expected sums of rewards",
            file=sys.stderr,
        )
    seed = derive_seed(seed_of_students(config), "learning on")
    env = config.task.make_env(1, seed=derive_seed(seed, "games"), n_threads=config.threads)
    assert settings.steps is not None
    with run.progress("the student learns on", settings.steps, "steps") as bar:

        def on_step(steps: int) -> None:
            bar.advance(steps - bar.done)
            heed("the student learned on")

        def on_point(model: DQN) -> None:
            step = model.num_timesteps
            played = play(as_teacher(model.q_net), evaluation.curve_episodes, f"learning on, curve {step}")
            run.log(ROLE, step, {SCORE: played.mean})

        watch = Watch(settings.curve_every_steps or 0, on_step, on_point)
        logger = Logger(None, [RunWriter(run, ROLE)])
        model = learn_on(path, env, settings, seed=seed, device=config.device, logger=logger, watch=watch)
    env.close()
    result = play(as_teacher(model.q_net), evaluation.episodes, "evaluation")
    run.log(ROLE, model.num_timesteps, {SCORE: result.mean})
    counters = {"_n_updates": model._n_updates, "_episode_num": model._episode_num}
    write_dqn_zip(run.out / PRODUCT, model.q_net, steps=model.num_timesteps, counters=counters)
    return {"score_after": result.mean, "score_after_ci95": result.interval(config.seed)}
