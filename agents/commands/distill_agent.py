"""Distil an agent of any environment with discrete actions into its twin, or into a smaller one.

    python scripts/distill_agent.py --teacher.path dqn.zip --env CartPole-v1                          its twin
    python scripts/distill_agent.py --teacher.path dqn.zip --env CartPole-v1 --student.net_arch "[16]"
    python scripts/distill_agent.py --teacher.path dqn.zip --env CartPole-v1 --dry_run    what would it take?
    python scripts/distill_agent.py --teacher.path ppo.zip --env my_envs/Maze-v0 --env_package my_envs
    python scripts/distill_agent.py --teacher.path ppo.zip --env ID --wrappers "[FlattenObservation, VecFrameStack:4]"
    python scripts/distill_agent.py --teacher.path ppo.zip --env ID --wrappers minigrid.wrappers:ImgObsWrapper
    python scripts/distill_agent.py --teacher.path a.zip --teacher.more "[b.zip]" --env ID    two teachers
    python scripts/distill_agent.py --config tasks.yaml        one student of several tasks: --tasks {} --help

The teacher is a zip of Stable-Baselines3 (DQN, PPO, A2C) or sb3-contrib (QR-DQN, TRPO, MaskablePPO, RecurrentPPO);
nothing in it is executed. VecNormalize's statistics are found beside it. Its kind, its size, the temperature, and the
score of random play are found or measured. The student is a DQN for Stable-Baselines3.

The run folder gets summary.json, TensorBoard curves, student.zip, which stock Stable-Baselines3 opens, and README.md,
its card in the form of the Hugging Face Hub. If the run is stopped (Ctrl-C, SIGTERM) or killed, the same command
continues it, and the result is the same where the environment repeats itself from a seed.
"""

from __future__ import annotations

from typing import Any

from polydistill.config.parsing import parse
from polydistill.errors import run_script
from polydistill_agents.commands.distil import distil
from polydistill_agents.commands.distil_tasks import SEVERAL_TASKS, asks_for
from polydistill_agents.lineage.agent_config import AgentConfig
from polydistill_agents.lineage.multitask.tasks import ManyTasksConfig

SCRIPT = "python scripts/distill_agent.py"


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    description = (__doc__ or "").replace(SCRIPT, called)
    options: dict[str, Any] = {"program": called, "description": description, "distils": True}
    if asks_for("tasks", argv):
        distil(parse(ManyTasksConfig, argv, default_name="tasks", **options), argv, called, SEVERAL_TASKS)
    else:
        distil(parse(AgentConfig, argv, default_name="agent", **options), argv, called)
