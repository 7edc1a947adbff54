"""Score an agent in a game of Atari or in any environment of gymnasium; of Atari, show it play.

    python scripts/evaluate_agent.py runs/pong/student.zip --game pong --protocol rusu --video student.gif
    python scripts/evaluate_agent.py runs/pong/student.zip --beside agents/teachers/zoo/dqn-pong.zip --video both.gif
    python scripts/evaluate_agent.py runs/pong/student.zip --beside agents/teachers/zoo/dqn-pong.zip --report out.html
    python scripts/evaluate_agent.py a.zip --more "[b.zip, c.zip]" --game pong        the mean of their policies
    python scripts/evaluate_agent.py acktr:pong.pt --game pong --protocol zoo          as rl_zoo3 plays it: sampled
    python scripts/evaluate_agent.py ppo.zip --env CartPole-v1 --episodes 100          with random play beside it
    python scripts/evaluate_agent.py ppo.zip --env my_envs/Maze-v0 --env_package my_envs --wrappers "[VecFrameStack:4]"

FILE is a zip of Stable-Baselines3 (DQN, PPO, A2C) or sb3-contrib (QR-DQN, TRPO, MaskablePPO, RecurrentPPO), of any
year, or a table of weights (its layers are recognised by their shapes); it is a path, hf://org/name or
https://...#sha256=..., and is read without unpickling. Of Atari, an agent may have the game's own actions or all 18.
Where an environment has action masks, the table has the share of invalid actions, and the score of masked play.

A report shows where FILE and its teacher disagree: FILE plays, the teacher is asked in each state. The regret of a
state is the Q-value of the teacher's best action less that of FILE's (of logits, the difference of probabilities).
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import torch

from polydistill.config.parsing import parse
from polydistill.cores import say_if_loaded
from polydistill.device import resolve_threads
from polydistill.errors import UserError, run_script
from polydistill.runs import NARROW, format_narrow_table
from polydistill_agents.commands.scoring import AgentEvaluationConfig, Row, Scoring
from polydistill_agents.lineage.report import count_games, format_notes, notes
from polydistill_agents.networks.nature import SIZES, multiply_adds

SCRIPT = "python scripts/evaluate_agent.py"
OF_ATARI, OF_OTHERS = ("of human",), ("invalid", "masked mean")  # columns
HEADERS = ("agent", "mean", "95% over games", "IQM", *OF_ATARI, *OF_OTHERS, "parameters", "seconds")
IMPORTANCE = ("agent", "mean", "95% over games", *OF_OTHERS, "parameters", "IQM", *OF_ATARI, "seconds")
OTHERS = 52  # characters that the columns beside an agent's name need at least


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    config = parse(
        AgentEvaluationConfig,
        argv,
        program=f"{called} FILE",
        description=(__doc__ or "").replace(SCRIPT, called),
        default_name=None,
        first_word="file",
    ).config
    _check_places(config)
    states = min(config.episodes, 32) * multiply_adds(SIZES["nature"])
    torch.set_num_threads(resolve_threads(config.threads, step=states))
    say_if_loaded()
    scoring = Scoring(config)
    agents = scoring.open()
    n_actions = {path: agent.count_actions(config.task) for path, agent in agents.items()}
    teacher = agents[config.beside] if config.report else None
    if teacher is not None and len(set(n_actions.values())) > 1:
        counts = " and ".join(f"{path} {count}" for path, count in n_actions.items())
        raise UserError(f"report compares agents of the same actions, {counts}: leave --report out")
    rows = [*scoring.random_rows()]
    rows += [scoring.row(path, agent, teacher if path == config.name else None) for path, agent in agents.items()]
    source = scoring.protocol.source
    print(f"{config.game or config.env}, {count_games(config.episodes)}, protocol {config.protocol}\n({source})\n")
    columns = max(shutil.get_terminal_size().columns, NARROW)
    print(format_rows(rows, OF_ATARI if config.game else (), columns))
    sampled = {path: scoring.temperature(path, agent) for path, agent in agents.items()}
    found = [f"{path}: actions are sampled at T = {t:g}" for path, t in sampled.items() if t is not None]
    if config.more:
        found.append(f"{config.name}: {', '.join(config.files)}; Q-values among them at T = {config.temperature:g}")
    for line in format_notes(
        [*config.task.notes, *found, *notes(config.game or None, config.protocol, scoring.played)], columns
    ):
        print(line)
    if teacher is not None:
        command = shlex.join([*called.split(), *(sys.argv[1:] if argv is None else argv)])
        print(f"\n{scoring.report((teacher.kind, agents[config.name].kind), command)}\n\nsaved: {config.report}")
    if config.video:
        scoring.record(agents, n_actions)
        print(f"\nsaved: {config.video}")


def _check_places(config: AgentEvaluationConfig) -> None:
    """Before the games are played."""
    for name, file in (("video", config.video), ("report", config.report)):
        if file and not Path(file).parent.is_dir():
            raise UserError(f"there is no folder {Path(file).parent} for --{name}")
    if config.report and Path(config.report).exists():
        raise UserError(f"report {config.report} is there already: choose another name, or remove it")


def format_rows(rows: list[Row], always: tuple[str, ...], columns: int) -> str:
    """The table, without the optional columns of which no row has a value and that are not ``always`` there."""
    left_out = {
        name for name in (*OF_ATARI, *OF_OTHERS) if name not in always and not any(row.get(name) for row in rows)
    }
    told = [name for name in HEADERS if name not in left_out]
    table = [[row.get(name) for name in told] for row in rows]
    for cells in table:
        cells[0] = shorten(str(cells[0]), columns)
    return format_narrow_table(told, table, [name for name in IMPORTANCE if name in told], columns)


def shorten(path: str, columns: int) -> str:
    """The end of a path that is too long for a table of so many columns."""
    room = columns - OTHERS
    return path if len(path) <= room else f"...{path[3 - room :]}"
