"""Train a teacher of a control task, a DQN or PPO of Stable-Baselines3, in minutes, for distill_agent.py.

    python scripts/train_control_teacher.py --env Acrobot-v1 --file acrobot.zip
    python scripts/train_control_teacher.py --env Acrobot-v1 --algorithm dqn --file acrobot.zip

The file is an ordinary zip of Stable-Baselines3. Any other agent of these environments serves as well, of any training.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("atari")

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stable_baselines3 import DQN, PPO

from polydistill.config.parsing import parse
from polydistill.disk import disk_errors
from polydistill.errors import UserError, require_at_least, require_choice, run_script
from polydistill.runs import format_interval
from polydistill_agents.environments.evaluation import evaluate
from polydistill_agents.environments.gym_names import find_id
from polydistill_agents.environments.gym_task import open_environment
from polydistill_agents.environments.random_play import measure_random, no_better_than_random
from polydistill_agents.teachers import as_teacher


class Training(NamedTuple):
    """What rl_zoo3 publishes (hyperparams/dqn.yml, ppo.yml); of PPO, and of Acrobot, fewer steps, and no VecNormalize.

    Attributes:
        algorithm: of Stable-Baselines3.
        n_envs: games at once.
        steps: of DQN rl_zoo3's, in Acrobot 40,000 of its 100,000; a few hundred thousand of PPO.
        options: of the algorithm.
    """

    algorithm: type[DQN] | type[PPO]
    n_envs: int
    steps: int
    options: dict[str, Any]


ACROBOT_AND_LUNAR_LANDER_DQN = {
    "learning_rate": 6.3e-4, "batch_size": 128, "buffer_size": 50_000, "learning_starts": 0, "gamma": 0.99,
    "target_update_interval": 250, "train_freq": 4, "gradient_steps": -1, "exploration_fraction": 0.12,
    "exploration_final_eps": 0.1, "policy_kwargs": {"net_arch": [256, 256]},
}  # fmt: skip
TRAININGS = {  # of each environment the first is the default
    ("Acrobot-v1", "ppo"): Training(PPO, 16, 150_000, {
        "n_steps": 256, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0,
    }),
    ("Acrobot-v1", "dqn"): Training(DQN, 1, 40_000, ACROBOT_AND_LUNAR_LANDER_DQN),
    ("CartPole-v1", "dqn"): Training(DQN, 1, 50_000, {
        "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1_000, "gamma": 0.99,
        "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128, "exploration_fraction": 0.16,
        "exploration_final_eps": 0.04, "policy_kwargs": {"net_arch": [256, 256]},
    }),
    ("LunarLander-v3", "ppo"): Training(PPO, 16, 400_000, {
        "n_steps": 1024, "batch_size": 64, "gae_lambda": 0.98, "gamma": 0.999, "n_epochs": 4, "ent_coef": 0.01,
    }),
    ("LunarLander-v3", "dqn"): Training(DQN, 1, 100_000, ACROBOT_AND_LUNAR_LANDER_DQN),
    ("MountainCar-v0", "dqn"): Training(DQN, 1, 120_000, {
        "learning_rate": 4e-3, "batch_size": 128, "buffer_size": 10_000, "learning_starts": 1_000, "gamma": 0.98,
        "target_update_interval": 600, "train_freq": 16, "gradient_steps": 8, "exploration_fraction": 0.2,
        "exploration_final_eps": 0.07, "policy_kwargs": {"net_arch": [256, 256]},
    }),
}  # fmt: skip
ENVIRONMENTS = tuple(dict.fromkeys(env for env, _ in TRAININGS))


@dataclass(frozen=True)
class ControlTeacherConfig:
    """What is trained.

    Args:
        env: Acrobot-v1, CartPole-v1, LunarLander-v3 (needs the extra box2d) or MountainCar-v0.
        file: the zip to write; it must not be there.
        algorithm: dqn or ppo; auto: dqn for CartPole and MountainCar, ppo for the others.
        steps: to train for; 0: those of the table in this script.
        seed: of the weights, the games and the exploration.
        episodes: games for the score that is printed.
    """

    env: str
    file: str
    algorithm: Literal["auto", "dqn", "ppo"] = "auto"
    steps: int = 0
    seed: int = 0
    episodes: int = 100

    def __post_init__(self) -> None:
        object.__setattr__(self, "env", find_id(self.env))
        require_choice("env", self.env, ENVIRONMENTS)
        known = [algorithm for env, algorithm in TRAININGS if env == self.env]
        if self.algorithm == "auto":
            object.__setattr__(self, "algorithm", known[0])
        require_choice(f"algorithm of {self.env}", self.algorithm, known)
        require_at_least(0, self, "steps", "seed")
        require_at_least(1, self, "episodes")
        if not self.file.endswith(".zip"):
            raise ValueError(f"file must end in .zip, got {self.file}")


def train(config: ControlTeacherConfig) -> DQN | PPO:
    """The agent of ``config``, at its last step."""
    training = TRAININGS[config.env, config.algorithm]
    env = open_environment(config.env).make_env(training.n_envs, seed=config.seed)
    model = training.algorithm("MlpPolicy", env, seed=config.seed, device="cpu", **training.options)
    return model.learn(config.steps or training.steps)


@run_script
def main(argv: list[str] | None = None) -> None:
    program = "python scripts/train_control_teacher.py"
    config = parse(ControlTeacherConfig, argv, program=program, description=__doc__ or "", default_name=None).config
    path = Path(config.file)
    if path.exists():
        raise UserError(f"{path} is there already: give --file another name")
    model = train(config)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
    task = open_environment(config.env)
    played = evaluate(as_teacher(path), task, episodes=config.episodes, seed=config.seed)
    interval = f"95% over {config.episodes} games: {format_interval(played.interval())}"
    print(f"{path}: mean {played.mean:.2f} ({interval})")
    bad = no_better_than_random(played.scores, measure_random(task, config.episodes, config.seed))
    if bad:
        print(f"warning: {bad}; train another, with another --seed or more --steps", file=sys.stderr)


if __name__ == "__main__":
    main()
