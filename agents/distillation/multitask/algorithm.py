"""Policy distillation of several teachers into one student of several tasks (Rusu et al. 2016).

Every task has games, a teacher, a replay and random streams of its own: its seat (``seat.Seat``). The games of all
tasks play a round at the same time, step by step, then the student makes the updates that all their steps owe, each
from one task.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from polydistill.learning.rewind import NonFiniteError
from polydistill.losses import get_objective
from polydistill.streams import derive_seed
from polydistill_agents.distillation.dues import Dues
from polydistill_agents.distillation.multitask.learner import MultitaskLearner
from polydistill_agents.distillation.multitask.seat import Seat
from polydistill_agents.distillation.settings import check_same_observations
from polydistill_agents.environments.seeded import SeededVecEnv
from polydistill_agents.networks.architecture import Architecture
from polydistill_agents.networks.multitask import CONTROLLER, MultitaskNetwork
from polydistill_agents.networks.nature import SIZES
from polydistill_agents.networks.observations import Arrays

Callbacks = Mapping[str, BaseCallback]


class MultitaskDistillation:
    """Teach one student the policies of several teachers, each in its own task.

    Args:
        envs: games of each task, by its name: equally many, with observations of one form.
        teachers: of each task, whatever :func:`polydistill_agents.as_teacher` takes.
        torso: what all tasks share.
        controller: units of a head's hidden layers.
        outputs: of one head for all tasks, see :class:`~polydistill_agents.networks.multitask.MultitaskNetwork`.
        temperatures: of each task's Q-values; None: as :class:`PolicyDistillation` finds them.
        weighting: see :class:`~polydistill_agents.distillation.multitask.learner.MultitaskLearner`.
        weights: likewise.
        learning_rate: of Adam; a number, or a schedule of the remaining progress.
        precision: of a Nature-CNN's convolutions and hidden layer.
        averaging: share of the updates so far over which the student's weights are averaged.
        generation: number of the student in its lineage; part of every random stream.
        seed: root of the random streams.
        device: of student and teachers.
        settings: further ones of :class:`PolicyDistillation`, the same in every task: ``buffer_size``,
            ``learning_starts``, ``train_freq`` and the steps of play are of each task.

    Attributes:
        seats: the tasks, by name; each is a :class:`PolicyDistillation` to its callbacks.
        network: the student.
        learner: makes its updates.

    Raises:
        ValueError: a task without a teacher or a teacher without a task, or tasks that no student could have together.
        UserError: a teacher that cannot be read, or is of another task.
    """

    def __init__(
        self,
        envs: Mapping[str, SeededVecEnv],
        teachers: Mapping[str, Any],
        torso: Architecture | None = None,
        *,
        controller: tuple[int, ...] = CONTROLLER,
        outputs: Mapping[str, tuple[int, ...]] | None = None,
        temperatures: Mapping[str, float | None] | None = None,
        weighting: str = "equal",
        weights: Mapping[str, float] | None = None,
        learning_rate: Any = 1e-3,
        precision: str = "float32",
        averaging: float = 0.0,
        generation: int = 1,
        seed: int = 0,
        device: torch.device | str = "auto",
        **settings: Any,
    ) -> None:
        check_tasks(envs, teachers)
        for what, given in (("temperatures", temperatures), ("weights", weights), ("outputs", outputs)):
            if given is not None and set(given) != set(envs):
                raise ValueError(f"{what} must be of the tasks {', '.join(envs)}, got {', '.join(given)}")
        torso = torso or Architecture(SIZES["nature"], None, (), torch.nn.ReLU)
        self.generation, self.seed = generation, seed
        space = next(iter(envs.values())).observation_space
        actions = {name: int(env.action_space.n) for name, env in envs.items()}  # type: ignore[attr-defined]
        # layers draw from the global generator of the CPU, given back after; learning begins with better weights
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "built weights", generation))
            self.network = MultitaskNetwork(space, actions, torso, controller, outputs)
        where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        if get_objective(settings.get("objective", "policy_kl")).needs_q_values:
            self.network.put_on_scale()
        self.network.to(where).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        rate = learning_rate(1.0) if callable(learning_rate) else learning_rate
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=rate, fused=True)
        common = {"learning_rate": learning_rate, "precision": precision, "generation": generation, "device": where}
        self.seats = {
            name: Seat(
                self.network,
                self.optimizer,
                name,
                torso.policy,
                env,
                teacher=teachers[name],
                temperature=None if temperatures is None else temperatures[name],
                seed=derive_seed(seed, f"task {name}"),
                averaging=averaging,
                **common,
                **settings,
            )
            for name, env in envs.items()
        }
        kinds = {name: seat.score_kind for name, seat in self.seats.items()}
        if outputs is not None and len(set(kinds.values())) > 1:
            raise ValueError(f"one head gives scores of one kind, and the teachers would ask it for {kinds}")
        self.learner = MultitaskLearner(
            self.network,
            self.optimizer,
            {name: seat.lesson for name, seat in self.seats.items()},
            seed=seed,
            weighting=weighting,
            weights=weights,
            generation=generation,
            precision=precision,
            averaging=averaging,
        )
        for seat in self.seats.values():
            seat.part.whole = self.learner

    @property
    def _one(self) -> Seat:
        """Any of them: all count the same steps and updates."""
        return next(iter(self.seats.values()))

    @property
    def steps(self) -> int:
        """Of play so far, in each task."""
        return self._one.num_timesteps

    @property
    def n_updates(self) -> int:
        """Made so far, in all tasks together."""
        return self._one._n_updates

    def learn(
        self,
        steps: int,
        callbacks: Callbacks | None = None,
        *,
        between_rounds: Callable[[], None] | None = None,
        log_interval: int | None = 1,
        reset: bool = True,
    ) -> MultitaskDistillation:
        """Play ``steps`` steps of each task, which its teacher labels, and teach the student from them.

        Args:
            steps: agent steps of all games of a task together.
            callbacks: of Stable-Baselines3, by task; their model is the task's seat. One that asks to stop stops all.
            between_rounds: called before each round of play, when :meth:`state` can be asked for.
            log_interval: rounds between two records; None: no records.
            reset: count from zero, and start new games.

        Warns:
            UserWarning: steps were played, and no update was made.
        """
        given, stopped = callbacks or {}, False
        told = {name: seat.stand_ready(steps, given.get(name), reset=reset) for name, seat in self.seats.items()}
        updates_before, began = self.n_updates, self.steps
        while not self._one.finished:
            if between_rounds is not None:
                between_rounds()
            stopped = not self._play_round(told)
            if stopped:
                break
            updates = self.dues().now
            if updates:
                self.train(updates)
            for seat in self.seats.values():
                seat.end_round(log_interval)
        for name, seat in self.seats.items():
            seat.end()
            told[name].on_training_end()
        if self.n_updates == updates_before and self.steps > began:
            why = self.dues().explain_none(stopped, self._one.train_freq)
            warnings.warn(f"learn made no update: {why}", stacklevel=2)
        return self

    def _play_round(self, told: Callbacks) -> bool:
        """Each task's games begin a step while another's teacher is asked; False if a callback asks to stop."""
        for name, seat in self.seats.items():
            seat.begin_round(told[name])
        for _ in range(self._one.round_steps):
            chosen = {name: seat.send() for name, seat in self.seats.items()}
            if not all([seat.receive(chosen[name], told[name]) for name, seat in self.seats.items()]):
                return False
            if self._one.finished:
                break
        for callback in told.values():
            callback.on_rollout_end()
        return True

    def dues(self) -> Dues:
        """Updates that the steps of all tasks owe, once every replay holds ``learning_starts`` samples."""
        one, seats = self._one, self.seats.values()
        least = min((seat.played for seat in seats), key=len)
        made, played = one._n_updates - one._updates_at_zero, sum(seat._played for seat in seats)
        return Dues(played, made, least, one.learning_starts, one.samples_per_step, one.batch_size)

    def train(self, n_updates: int) -> None:
        """Make updates of the student from the replays.

        Raises:
            NonFiniteError: the loss is not finite; the student is as it was before that update.
        """
        for seat in self.seats.values():
            seat.prepare_updates()
        shares = self.learner.shares()
        replays = {name: seat.played for name, seat in self.seats.items()}
        try:
            rounds = self.learner.round(replays, n_updates, self._one.batch_size)
        except NonFiniteError as error:
            number = self.n_updates + error.batch["update"]
            where = f"generation {self.generation} at step {self.steps:,}, update {number:,}"
            raise NonFiniteError(f"{error}: {where}", error.batch) from None
        for name, seat in self.seats.items():
            seat.count_updates(n_updates, rounds.get(name), shares[name])

    def save(self, folder: str | Path) -> None:
        """Write each task's network as ``<task>.zip``, an ordinary DQN zip of that task alone; the folder may be new.

        Raises:
            ValueError: the torso is wider than what ``DQN.load`` opens.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, seat in self.seats.items():
            seat.save(Path(folder) / f"{name}.zip")

    def state(self) -> dict[str, Any]:
        """All that decides the future but the inner state of the games and the frames of the replays."""
        return {"learner": self.learner.state("cpu"), "tasks": {n: seat.state() for n, seat in self.seats.items()}}

    def load_state(self, state: Mapping[str, Any], *, new_games: bool = False) -> None:
        """Go on from :meth:`state`; see :meth:`PolicyDistillation.load_state`."""
        self.learner.load_state(state["learner"])
        for name, seat in self.seats.items():
            seat.load_state(state["tasks"][name], new_games=new_games)

    def continue_play(self, task: str, first: Arrays, steps: Any) -> None:
        """See :meth:`PolicyDistillation.continue_play`: of one task."""
        self.seats[task].continue_play(first, steps)

    def close(self) -> None:
        """Close the games."""
        for seat in self.seats.values():
            seat.games.close()


def check_tasks(envs: Mapping[str, SeededVecEnv], teachers: Mapping[str, Any]) -> None:
    """Refuse what no student could learn together.

    Raises:
        ValueError: naming the task.
    """
    for name in [*envs, *teachers]:
        if name not in teachers:
            raise ValueError(f"the task {name} has no teacher")
        if name not in envs:
            raise ValueError(f"the teacher of {name} has no task")
    if not envs:
        raise ValueError("there is no task: envs is empty")
    check_same_observations({name: env.observation_space for name, env in envs.items()})
    counts = {name: env.num_envs for name, env in envs.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"every task must play as many games at once as the others, got {counts}")
