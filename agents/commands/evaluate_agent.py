"""Score an agent in a game of Atari or in any environment of gymnasium; of Atari, show it play.

    python scripts/evaluate_agent.py runs/pong/student.zip --game pong --protocol rusu --video student.gif
    python scripts/evaluate_agent.py runs/pong/student.zip --beside agents/teachers/zoo/dqn-pong.zip --video both.gif
    python scripts/evaluate_agent.py runs/pong/student.zip --beside agents/teachers/zoo/dqn-pong.zip --report out.html
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polydistill.config.fields import check_fields
from polydistill.config.parsing import parse
from polydistill.cores import say_if_loaded
from polydistill.device import MOST_THREADS, Device, resolve_device, resolve_threads
from polydistill.disk import atomic_write
from polydistill.errors import UserError, require_at_least, require_at_most, run_script
from polydistill.report.html import render_html
from polydistill.runs import NARROW, Progress, format_narrow_table, format_table
from polydistill.statistics import bootstrap_interval, iqm
from polydistill_agents.environments.disagreement import Comparing
from polydistill_agents.environments.evaluation import Evaluation, evaluate
from polydistill_agents.environments.gym_config import EnvironmentConfig
from polydistill_agents.environments.protocols import Play, Protocol, sampling_temperature
from polydistill_agents.environments.random_play import measure_random
from polydistill_agents.environments.task import AtariTask, Task, open_task
from polydistill_agents.environments.video import record_game, write_gif
from polydistill_agents.lineage.disagreement_page import Setting, make_page, summary
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

SCRIPT = "python scripts/evaluate_agent.py"
OF_ATARI, OF_OTHERS = ("of human",), ("invalid", "masked mean")  # columns
HEADERS = ("agent", "mean", "95% over games", "IQM", *OF_ATARI, *OF_OTHERS, "parameters", "seconds")
IMPORTANCE = ("agent", "mean", "95% over games", *OF_OTHERS, "parameters", "IQM", *OF_ATARI, "seconds")
OTHERS = 52  # characters that the columns beside an agent's name need at least
Row = dict[str, str | float | None]


@dataclass(frozen=True)
class _Agents:
    """Who is scored.

    Args:
        file: a zip of Stable-Baselines3 (.zip may be left out), or a table of weights; a path, hf:// or https://.
        beside: a second agent, scored too and shown on the left of the video; the teacher of a report.
        game: ROM id of ale-py, like pong; PongNoFrameskip-v4 and ALE/Pong-v5 are understood too. Empty: pong, or env.
    """

    file: str
    beside: str = ""
    game: str = ""


@dataclass(frozen=True)
class AgentEvaluationConfig(EnvironmentConfig, _Agents):
    """Which agent is scored, and how.

    Args:
        env: id of gymnasium, like CartPole-v1, to play instead of a game of Atari.
        protocol: of Atari rusu, machado or zoo, of env own; empty: rusu or own.
        episodes: full games to play.
        seed: of the games and of the random actions.
        play: how it acts: greedy (except for the protocol's epsilon), sample (from its policy), or protocol: zoo
            samples from PPO and A2C, the others never.
        temperature: of Q-values where they are sampled, in their unit.
        device: auto, cpu or cuda.
        threads: processor threads; 0: as many as it may use and its work is worth.
        video: GIF to write, of one game of Atari from its start.
        video_steps: agent steps to show at most (15 a second).
        report: new HTML file: where the agent disagrees with the one beside it, and what that costs.
    """

    protocol: str = ""
    episodes: int = 30
    seed: int = 0
    play: Play = "protocol"
    temperature: float = 0.01
    device: Device = "auto"
    threads: int = 0
    video: str = ""
    video_steps: int = 600
    report: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_what_is_played()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        require_at_least(1, self, "episodes", "video_steps")
        if self.video and not self.video.lower().endswith(".gif"):
            raise ValueError(f"video must end in .gif, got {self.video}")
        if self.report and not self.report.lower().endswith(".html"):
            raise ValueError(f"report must end in .html, got {self.report}")
        if self.report and not self.beside:
            raise ValueError("report compares the agent with its teacher: add --beside TEACHER")
        require_at_least(0, self, "seed", "threads")
        require_at_most(MOST_THREADS, self, "threads")

    def _check_what_is_played(self) -> None:
        if self.env:
            if self.game or self.video:
                raise ValueError(
                    f"{'game' if self.game else 'video'} is for Atari: leave it out beside env = {self.env}"
                )
            self.store_names(self.open_environment())
        else:
            given = [name for name in ("env_package", "env_kwargs", "env_max_steps", "wrappers") if getattr(self, name)]
            if given:
                raise ValueError(f"{given[0]} is of an environment of gymnasium: add --env ID")
            object.__setattr__(self, "game", open_task(self.game or "pong").name)
        object.__setattr__(self, "protocol", self.protocol or self.task.default_protocol)
        self.task.protocol(self.protocol)

    @cached_property
    def task(self) -> Task:
        """What the agents play."""
        return self.open_environment() if self.env else open_task(self.game)


class _Scoring:
    """Plays the games of a config."""

    def __init__(self, config: AgentEvaluationConfig) -> None:
        self.config, self.task = config, config.task
        self.protocol = self.task.protocol(config.protocol)
        self.device, self.threads = resolve_device(config.device), resolve_threads(config.threads)  # of the emulator
        self.played: list[GamesPlayed] = []
        self.comparing: Comparing | None = None

    def temperature(self, path: str, agent: Teacher) -> float | None:
        """At which it samples; None: it is greedy, as a student's zip is, which is a DQN for others."""
        config = self.config
        play = "greedy" if config.play == "protocol" and is_student(path) else config.play
        return sampling_temperature(play, self.protocol, agent.kind, config.temperature)

    def play(self, path: str, agent: Teacher, *, masked: bool = False, teacher: Teacher | None = None) -> Evaluation:
        """The games of one agent; with a teacher, which is asked too, ``self.comparing`` sees both."""
        config = self.config
        with Progress(f"{path} plays{' masked' * masked}", config.episodes, "games") as bar:
            return evaluate(
                agent,
                self.task if teacher is None else self.task.drawn(),
                protocol=self.protocol,
                episodes=config.episodes,
                seed=config.seed,
                n_threads=self.threads,
                device=self.device,
                play="greedy" if self.temperature(path, agent) is None else "sample",
                temperature=config.temperature,
                on_step=lambda games: bar.advance(games - bar.done),
                masked=masked,
                reference=teacher,
                on_compared=self.comparing,
            )

    def row(self, path: str, agent: Teacher, teacher: Teacher | None = None) -> Row:
        """What the table says of an agent; a teacher is asked in its games, too."""
        if teacher is not None:
            self.comparing = Comparing(teacher.kind, agent.kind)
        result, episodes = self.play(path, agent, teacher=teacher), self.config.episodes
        cut = isinstance(self.task, AtariTask) or self.config.env_max_steps  # else that is how its games end
        truncated = result.truncated if cut else 0
        self.played.append(GamesPlayed(path, episodes, truncated, result.n_actions, result.game_actions))
        of_human, invalid = self.task.human_normalized(result.mean), result.invalid_share
        return {
            "agent": path,
            "mean": format_points(result.mean),
            "95% over games": format_points_interval(result.interval(self.config.seed)),
            "IQM": format_points(result.iqm),
            "of human": None if of_human is None else f"{of_human:z.2f}",
            "invalid": None if invalid is None else f"{100 * invalid:.1f}%",
            "masked mean": None if invalid is None else format_points(self.play(path, agent, masked=True).mean),
            "parameters": None if agent.network is None else count_parameters(agent.network),
            "seconds": f"{result.seconds:.0f}",
        }

    def random_rows(self) -> Iterator[Row]:
        """Random play in an environment of which no table has it."""
        if not isinstance(self.task, AtariTask):
            config = self.config
            scores = measure_random(self.task, config.episodes, config.seed, n_threads=self.threads)
            interval = bootstrap_interval(scores, generator=np.random.default_rng(config.seed))
            yield {
                "agent": "random play",
                "mean": format_points(float(scores.mean())),
                "95% over games": format_points_interval(interval),
                "IQM": format_points(iqm(scores)),
            }

    def report(self, kinds: tuple[str, str], command: str) -> str:
        """Write the page about the games that were compared; its numbers in short, as a table."""
        assert self.comparing is not None
        config = self.config
        found = self.comparing.finish(config.seed)
        names = config.file, config.beside, config.game or config.env, config.protocol
        page = render_html(make_page(found, Setting(*names, kinds, command)))
        atomic_write(Path(config.report), page.encode())
        headers, values = zip(*summary(found), strict=True)
        return format_table(headers, [values])

    def record(self, agents: Mapping[str, Teacher], n_actions: Mapping[str, int]) -> None:
        """Write the video."""
        assert isinstance(self.task, AtariTask)
        assert isinstance(self.protocol, Protocol)
        options: dict[str, Any] = {"seed": self.config.seed, "max_steps": self.config.video_steps}
        games = [
            record_game(
                agent,
                self.task,
                self.protocol,
                device=self.device,
                n_actions=n_actions[path],
                temperature=self.temperature(path, agent),
                **options,
            )
            for path, agent in agents.items()
        ]
        write_gif(Path(self.config.video), games)


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
    scoring = _Scoring(config)
    agents = {path: as_teacher(path).to(scoring.device) for path in (config.beside, config.file) if path}
    n_actions = {path: agent.count_actions(config.task) for path, agent in agents.items()}
    teacher = agents[config.beside] if config.report else None
    if teacher is not None and len(set(n_actions.values())) > 1:
        counts = " and ".join(f"{path} {count}" for path, count in n_actions.items())
        raise UserError(f"report compares agents of the same actions, {counts}: leave --report out")
    rows = [*scoring.random_rows()]
    rows += [scoring.row(path, agent, teacher if path == config.file else None) for path, agent in agents.items()]
    source = scoring.protocol.source
    print(f"{config.game or config.env}, {count_games(config.episodes)}, protocol {config.protocol}\n({source})\n")
    columns = max(shutil.get_terminal_size().columns, NARROW)
    print(format_rows(rows, OF_ATARI if config.game else (), columns))
    sampled = {path: scoring.temperature(path, agent) for path, agent in agents.items()}
    found = [f"{path}: actions are sampled at T = {t:g}" for path, t in sampled.items() if t is not None]
    for line in format_notes(
        [*config.task.notes, *found, *notes(config.game or None, config.protocol, scoring.played)], columns
    ):
        print(line)
    if teacher is not None:
        command = shlex.join([*called.split(), *(sys.argv[1:] if argv is None else argv)])
        print(f"\n{scoring.report((teacher.kind, agents[config.file].kind), command)}\n\nsaved: {config.report}")
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
