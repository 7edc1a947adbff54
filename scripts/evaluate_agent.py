"""Score an agent of an Atari game under a named protocol, and show it play.

    python scripts/evaluate_agent.py runs/pong/student.zip --game pong --protocol rusu --video student.gif
    python scripts/evaluate_agent.py runs/pong/student.zip --beside agents/teachers/zoo/dqn-pong.zip --video both.gif
    python scripts/evaluate_agent.py acktr:pong.pt --game pong --protocol zoo          as rl_zoo3 plays it: sampled
    python scripts/evaluate_agent.py ppo.zip --game MsPacmanNoFrameskip-v4 --play sample

FILE is a zip of Stable-Baselines3 (DQN, PPO, A2C) or sb3-contrib (QR-DQN), of any year, or a table of weights (its
layers are recognised by their shapes); it is a path, hf://org/name or https://...#sha256=..., and is read without
unpickling. An agent may have the game's own actions or all 18.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("atari")

import shutil
from pathlib import Path

import torch

from polydistill.config.parsing import parse
from polydistill.cores import say_if_loaded
from polydistill.device import resolve_device, resolve_threads
from polydistill.errors import UserError, run_script
from polydistill.runs import NARROW, Progress, format_narrow_table
from polydistill_agents.environments.evaluation import Evaluation, evaluate
from polydistill_agents.environments.protocols import sampling_temperature
from polydistill_agents.environments.video import record_game, write_gif
from polydistill_agents.lineage.config import AgentEvaluationConfig
from polydistill_agents.lineage.report import (
    GamesPlayed,
    count_games,
    format_notes,
    format_points,
    format_points_interval,
    notes,
)
from polydistill_agents.lineage.student_file import is_student
from polydistill_agents.networks.nature import SIZES, count_parameters, multiply_adds
from polydistill_agents.teachers import Teacher, as_teacher

HEADERS = ("agent", "mean", "95% over games", "IQM", "of human", "parameters", "seconds")
IMPORTANCE = ("agent", "mean", "95% over games", "parameters", "IQM", "of human", "seconds")
OTHERS = 52  # characters that the columns beside an agent's name need at least


def shorten(path: str, columns: int) -> str:
    """The end of a path that is too long for a table of so many columns."""
    room = columns - OTHERS
    return path if len(path) <= room else f"...{path[3 - room :]}"


def choose_temperature(config: AgentEvaluationConfig, path: str, agent: Teacher) -> float | None:
    """The temperature at which it samples; None: it is greedy, as a student's zip is, which is a DQN for others."""
    play = "greedy" if config.play == "protocol" and is_student(path) else config.play
    return sampling_temperature(play, config.task.protocol(config.protocol), agent.kind, config.temperature)


@run_script
def main(argv: list[str] | None = None) -> None:
    config = parse(
        AgentEvaluationConfig,
        argv,
        program="evaluate_agent.py FILE",
        description=__doc__,
        default_name=None,
        first_word="file",
    ).config
    if config.video and not Path(config.video).parent.is_dir():  # before the games are played
        raise UserError(f"there is no folder {Path(config.video).parent} for --video")
    device, threads = resolve_device(config.device), resolve_threads(config.threads)  # of the emulator
    states = min(config.episodes, 32) * multiply_adds(SIZES["nature"])
    torch.set_num_threads(resolve_threads(config.threads, step=states))
    say_if_loaded()
    task = config.task
    protocol = task.protocol(config.protocol)
    agents = {path: as_teacher(path).to(device) for path in (config.beside, config.file) if path}
    n_actions = {path: agent.count_actions(task) for path, agent in agents.items()}
    temperatures = {path: choose_temperature(config, path, agent) for path, agent in agents.items()}

    def play(path: str, agent: Teacher) -> Evaluation:
        with Progress(f"{path} plays", config.episodes, "games") as bar:
            return evaluate(
                agent,
                task,
                protocol=protocol,
                episodes=config.episodes,
                seed=config.seed,
                n_threads=threads,
                device=device,
                play="greedy" if temperatures[path] is None else "sample",
                temperature=config.temperature,
                on_step=lambda games: bar.advance(games - bar.done),
            )

    columns = max(shutil.get_terminal_size().columns, NARROW)
    rows: list[list[str | float | None]] = []
    played = []
    for path, agent in agents.items():
        result = play(path, agent)
        played.append(GamesPlayed(path, config.episodes, result.truncated, result.n_actions, result.game_actions))
        of_human = task.human_normalized(result.mean)
        rows.append(
            [
                shorten(path, columns),
                format_points(result.mean),
                format_points_interval(result.interval(config.seed)),
                format_points(result.iqm),
                None if of_human is None else f"{of_human:z.2f}",
                None if agent.network is None else count_parameters(agent.network),
                f"{result.seconds:.0f}",
            ]
        )
    print(f"{config.game}, {count_games(config.episodes)}, protocol {config.protocol}\n({protocol.source})\n")
    print(format_narrow_table(HEADERS, rows, IMPORTANCE, columns))
    sampled = [f"{path}: actions are sampled at T = {t:g}" for path, t in temperatures.items() if t is not None]
    for line in format_notes([*sampled, *notes(config.game, config.protocol, played)], columns):
        print(line)
    if config.video:
        games = [
            record_game(
                agent,
                task,
                protocol,
                seed=config.seed,
                max_steps=config.video_steps,
                device=device,
                n_actions=n_actions[path],
                temperature=temperatures[path],
            )
            for path, agent in agents.items()
        ]
        write_gif(Path(config.video), games)
        print(f"\nsaved: {config.video}")


if __name__ == "__main__":
    main()
