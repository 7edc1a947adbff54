"""Who is scored, and how; and the games that tell it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from polydistill.config.fields import check_fields
from polydistill.device import MOST_THREADS, Device, resolve_device, resolve_threads
from polydistill.disk import atomic_write
from polydistill.errors import require_at_least, require_at_most
from polydistill.report.html import render_html
from polydistill.runs import Progress, format_table
from polydistill.statistics import bootstrap_interval, iqm
from polydistill_agents.environments.disagreement import Comparing
from polydistill_agents.environments.evaluation import Evaluation, evaluate
from polydistill_agents.environments.gym_config import EnvironmentConfig
from polydistill_agents.environments.protocols import Play, Protocol, sampling_temperature
from polydistill_agents.environments.random_play import measure_random
from polydistill_agents.environments.task import AtariTask, Task, open_task
from polydistill_agents.environments.video import record_game, write_gif
from polydistill_agents.lineage.disagreement_page import Setting, make_page, summary
from polydistill_agents.lineage.report import GamesPlayed, format_points, format_points_interval
from polydistill_agents.lineage.student_file import is_student
from polydistill_agents.networks.nature import count_parameters
from polydistill_agents.teachers import Teacher, as_one_teacher, as_teacher

Row = dict[str, str | float | None]


@dataclass(frozen=True)
class _Agents:
    """Who is scored.

    Args:
        file: a zip of Stable-Baselines3 (.zip may be left out), or a table of weights; a path, hf:// or https://.
        beside: a second agent, scored too and shown on the left of the video; the teacher of a report.
        game: ROM id of ale-py, like pong; PongNoFrameskip-v4 and ALE/Pong-v5 are understood too. Empty: pong, or env.
        more: further files: with the first they are one agent, that acts by the mean of their policies.
    """

    file: str
    beside: str = ""
    game: str = ""
    more: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Of the agent that is scored."""
        return self.file, *self.more

    @property
    def name(self) -> str:
        """What it is called in the table."""
        return f"ensemble of the {len(self.files)}" if self.more else self.file


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
        temperature: of Q-values where they are sampled, or averaged with others; in their unit.
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
        for file in self.more:
            if not file or self.files.count(file) > 1:
                raise ValueError(f"more names further files, each once, got {', '.join(map(repr, self.files))}")
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


class Scoring:
    """Plays the games of a config."""

    def __init__(self, config: AgentEvaluationConfig) -> None:
        self.config, self.task = config, config.task
        self.protocol = self.task.protocol(config.protocol)
        self.device, self.threads = resolve_device(config.device), resolve_threads(config.threads)  # of the emulator
        self.played: list[GamesPlayed] = []
        self.comparing: Comparing | None = None

    def open(self) -> dict[str, Teacher]:
        """The agents by what they are called in the table, the last is the one that is scored."""
        config = self.config
        beside = {config.beside: as_teacher(config.beside)} if config.beside else {}
        agents = {
            **beside,
            config.name: as_one_teacher(config.files if config.more else config.file, config.temperature),
        }
        return {name: agent.to(self.device) for name, agent in agents.items()}

    def temperature(self, path: str, agent: Teacher) -> float | None:
        """At which it samples; None: it is greedy, as a student's zip is, which is a DQN for others."""
        config = self.config
        files = config.files if path == config.name else (path,)
        play = "greedy" if config.play == "protocol" and all(map(is_student, files)) else config.play
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
        names = config.name, config.beside, config.game or config.env, config.protocol
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
