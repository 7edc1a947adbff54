"""Write an agent as an ONNX file, which runs without torch and Stable-Baselines3; compare, score and time it.

    python scripts/export_agent.py runs/pong/student.zip --game pong --out student.onnx
    python scripts/export_agent.py ppo.zip --env CartPole-v1 --out ppo.onnx --episodes 100
    python scripts/export_agent.py runs/pong/student.zip --game pong --out small.onnx --int8
    python scripts/export_agent.py ppo.zip --env my_envs/Maze-v0 --env_package my_envs --out maze.onnx

FILE is what evaluate_agent.py takes; agents with a memory (RecurrentPPO) cannot be exported. The graph takes
observations as the environment gives them, any number at once, and gives Q-values or logits. What it does to them
first, and what must be done before it, stands in the card: student.onnx.json.

A process without torch opens the file and scores states of the agent's play. Where these scores are not torch's,
nothing is written. Then file and agent play the same games.

int8 also writes student.int8.onnx: whole numbers of 8 bits, their ranges taken from states of play (static
quantisation; dynamic quantisation took longer than float32 with 64 states at once). A sentence says whether it is worth
it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property

import torch

from polydistill._environment import MissingExtra, require_extra
from polydistill.config.fields import check_fields
from polydistill.config.parsing import parse
from polydistill.cores import say_if_loaded
from polydistill.device import MOST_THREADS, resolve_threads
from polydistill.errors import UserError, require_at_least, require_at_most, run_script
from polydistill.runs import NARROW, format_narrow_table
from polydistill_agents.environments.gym_config import EnvironmentConfig
from polydistill_agents.environments.protocols import Play
from polydistill_agents.environments.task import AtariTask, Task, open_task
from polydistill_agents.export import Exported, export_agent
from polydistill_agents.export.course import STATES, TOLERANCE, Target
from polydistill_agents.lineage.report import (
    GamesPlayed,
    count_games,
    format_notes,
    format_points,
    format_points_interval,
    notes,
)
from polydistill_agents.lineage.student_file import is_student
from polydistill_agents.networks.nature import SIZES, multiply_adds

SCRIPT = "python scripts/export_agent.py"
HEADERS = ("form", "score", "95% over games", "agreement", "ms, 1 at once", "ms, 64 at once", "bytes")
IMPORTANCE = ("form", "score", "95% over games", "ms, 1 at once", "ms, 64 at once", "agreement", "bytes")


@dataclass(frozen=True)
class _Exporting:
    """What is exported.

    Args:
        file: a zip of Stable-Baselines3 (.zip may be left out), or a table of weights; a path, hf:// or https://.
        out: new file that ends in .onnx; its card is OUT.json.
        game: ROM id of ale-py, like pong, that the agent plays; or env.
    """

    file: str
    out: str
    game: str = ""


@dataclass(frozen=True)
class ExportConfig(EnvironmentConfig, _Exporting):
    """Which agent is exported, and how the file is tried.

    Args:
        env: id of gymnasium, like CartPole-v1, that the agent plays; or game.
        int8: also write an int8 file, NAME.int8.onnx.
        protocol: of Atari rusu, machado or zoo, of env own; empty: rusu or own.
        episodes: full games that the agent plays, and then each file.
        seed: of the games.
        play: how it acts: greedy (except for the protocol's epsilon), sample (from its policy), or protocol: zoo
            samples from PPO and A2C, the others never.
        temperature: of Q-values where they are sampled; in their unit.
        states: of the agent's play, that are compared at most.
        tolerance: largest difference of a score from torch's, as a share of the largest score.
        threads: processor threads; 0: as many as it may use and its work is worth. Files are run on one.
    """

    int8: bool = False
    protocol: str = ""
    episodes: int = 30
    seed: int = 0
    play: Play = "protocol"
    temperature: float = 0.01
    states: int = STATES
    tolerance: float = TOLERANCE
    threads: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if bool(self.env) == bool(self.game):
            raise ValueError("what the agent plays is needed: --game pong, or --env ID, and not both")
        if self.game:
            object.__setattr__(self, "game", open_task(self.game).name)
        else:
            self.store_names(self.open_environment())
        object.__setattr__(self, "protocol", self.protocol or self.task.default_protocol)
        self.task.protocol(self.protocol)
        for name in ("temperature", "tolerance"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        require_at_least(1, self, "episodes", "states")
        require_at_least(0, self, "seed", "threads")
        require_at_most(MOST_THREADS, self, "threads")

    @cached_property
    def task(self) -> Task:
        """What the agent plays."""
        return open_task(self.game) if self.game else self.open_environment()


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    config = parse(
        ExportConfig,
        argv,
        program=f"{called} FILE",
        description=(__doc__ or "").replace(SCRIPT, called),
        default_name=None,
        first_word="file",
    ).config
    try:
        require_extra("export")
    except MissingExtra as error:
        raise UserError(str(error)) from None
    Target(config.out, config.int8)
    threads = resolve_threads(config.threads, step=min(config.episodes, 32) * multiply_adds(SIZES["nature"]))
    torch.set_num_threads(threads)
    say_if_loaded()
    exported = export_agent(
        config.file,
        config.task,
        config.out,
        int8=config.int8,
        protocol=config.protocol,
        episodes=config.episodes,
        seed=config.seed,
        # a student's zip is a DQN for others, whatever its scores are
        play="greedy" if config.play == "protocol" and is_student(config.file) else config.play,
        temperature=config.temperature,
        states=config.states,
        tolerance=config.tolerance,
        n_threads=threads,
        progress=True,
    )
    print(f"{config.task.name}, {count_games(config.episodes)} each, protocol {config.protocol}\n")
    print("\n".join(tell(exported, config, max(shutil.get_terminal_size().columns, NARROW))))


def tell(exported: Exported, config: ExportConfig, columns: int) -> list[str]:
    """The table and the lines below it."""
    rows, played = [], []
    for form in exported.forms:
        games = form.evaluation
        cut = games.truncated if isinstance(config.task, AtariTask) or config.env_max_steps else 0
        played.append(GamesPlayed(form.name, config.episodes, cut, games.n_actions, games.game_actions))
        rows.append(
            [
                form.name,
                format_points(games.mean),
                format_points_interval(games.interval(config.seed)),
                f"{games.agreement:.3f}" if form.content else None,
                *(f"{milliseconds:.3g}" for milliseconds in form.latency.values()),
                len(form.content) or None,
            ]
        )
    lines = [format_narrow_table(HEADERS, rows, IMPORTANCE, columns)]
    found = [*config.task.notes, *notes(config.game or None, config.protocol, played)]
    for form in exported.forms[1:]:
        beside = form.comparison
        assert beside is not None
        found.append(
            f"{form.name} without torch, {beside.states} states of play: the largest difference from torch's scores is "
            f"{beside.largest_difference:.2g}, of at most {beside.largest_score:.3g}; the best action is the same in "
            f"{100 * beside.agreement:.1f}%"
        )
    found += [f"before the graph: {line}" for line in exported.told["before_graph"]]
    lines += format_notes([*found, *([exported.verdict] if exported.verdict else [])], columns)
    return [*lines, f"\nsaved: {', '.join(map(str, [*exported.files, exported.card]))}"]
