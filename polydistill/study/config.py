"""What a user says of a study: a frozen dataclass, and its ranges."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from polydistill._environment import WORLDS
from polydistill.config.fields import check_fields
from polydistill.errors import require_at_least, require_choice, suggest
from polydistill.study.executors.settings import RayConfig, SlurmConfig
from polydistill.study.records import METRICS, TEACHER, Direction

ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")
MOST_WORKERS = 4096


@dataclass(frozen=True)
class StudyConfig:
    """Compare arms in many seeds, paired by seed.

    Args:
        world: whose runs they are: what the name of its script says after distill_. With runs it may be left out.
        base: a config of that world, which the arms change; relative to this file or to the clone; empty: the world's
            own default.
        settings: keys of the world's config for all arms, like {training.epochs: 2}; --settings.training.epochs 2 sets
            one of them.
        arms: name -> keys that the arm sets, like {ban: {student.objective: ban}}. `teacher` names an arm: its student
            of the same seed teaches; else the seed's own teacher does. {ensemble: [ban, ban_2]} trains nothing: it is
            the mean of the probabilities of those arms' students of the same seed. --arms.ban.training.epochs 2 sets
            one key of an arm.
        contrasts: pairs of arms named beforehand, the first against the second; all other pairs are exploratory.
        seeds: how many; a study may get more later, and its report says which they were.
        first_seed: the first of them.
        metric: by which arms are compared; empty: the world's own, test_error (in %) or score.
        direction: auto, or whether lower or higher is better, for a metric that this version does not know.
        margin: difference that does not matter, in the metric's unit, for a test of equivalence; null: none.
        alpha: rate of false positives over all contrasts together.
        workers: runs at once, of one core each; 0: as many as there are cores; of runs on a GPU one. On a cluster at
            most so many; 0: as many as fit.
        executor: where they run: local, this computer; ray, a Ray cluster; slurm, a queue through submitit.
        ray: the cluster, and what a run takes of it.
        slurm: the queue, and what a run takes of it.
        share_scores: where the runs of a seed with one teacher are more than the workers, what they would all compute
            of it is computed once: its scores of the images that they learn from, or the games that it is scored in;
            false: by each of them, and by runs that learn together. The results are the same.
        students_together: how many runs of an arm one process makes, with the steps of their students together: for a
            GPU that one small network leaves idle. On a CPU they take longer than one after the other. Each result is
            that of its run alone up to rounding. Not every world can do it: one line says so.
        runs: read the finished run folders that this pattern finds, like 'runs/*', and run nothing. Arms are found
            by what differs in their configs.
    """

    fewest_seeds, fewest_arms = 2, 2  # of a study, which compares

    world: str = ""
    base: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, Any] = field(default_factory=dict)
    contrasts: tuple[tuple[str | None, str | None], ...] = ()
    seeds: int = 20
    first_seed: int = 0
    metric: str = ""
    direction: Literal["auto", "lower", "higher"] = "auto"
    margin: float | None = None
    alpha: float = 0.05
    workers: int = 0
    share_scores: bool = True
    executor: Literal["local", "ray", "slurm"] = "local"
    ray: RayConfig = field(default_factory=RayConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    students_together: int = 1
    runs: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.world or not self.runs:
            require_choice("world", self.world, WORLDS)
        if self.seeds < self.fewest_seeds:
            raise ValueError(f"seeds must be at least {self.fewest_seeds}: one seed has no interval, got {self.seeds}")
        require_at_least(0, self, "first_seed", "workers")
        require_at_least(1, self, "students_together")
        self._check_together()
        if self.workers > MOST_WORKERS:
            raise ValueError(f"workers must be at most {MOST_WORKERS:,}, got {self.workers:,}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is a rate between 0 and 1, got {self.alpha}")
        if self.margin is not None and self.margin <= 0:
            raise ValueError(f"margin must be positive, got {self.margin}")
        # an unquoted `null` is a good name of an arm, and None to YAML
        object.__setattr__(self, "arms", {_name(name): arm for name, arm in self.arms.items()})
        if self.world:
            self._check_metric()
        if self.runs:
            self._check_found()
        else:
            self._check_arms()
            self._check_contrasts()

    def _check_together(self) -> None:
        able = [name for name, world in WORLDS.items() if world.together]
        if self.students_together > 1 and self.world not in able:
            raise ValueError(f"students_together is for world {' and '.join(able)}, got {self.world or 'none'}")

    def _check_metric(self) -> None:
        if self.chosen_metric not in METRICS and self.direction == "auto":
            raise ValueError(
                f"whether a lower or a higher {self.metric} is better is not known{suggest(self.metric, METRICS)}; "
                "give direction"
            )

    def _check_found(self) -> None:
        for name in ("arms", "contrasts", "settings", "base"):
            if getattr(self, name):
                raise ValueError(
                    f"runs reads folders that are there: {name} would be named after the runs, leave it out"
                )

    def _check_arms(self) -> None:
        if len(self.arms) < self.fewest_arms:
            raise ValueError(f"arms must be at least {self.fewest_arms}, got {len(self.arms)}: a study compares")
        for name, arm in self.arms.items():
            whole = name.partition(".")[0]
            if whole and whole != name:  # a flag --arms.NAME.KEY of an arm that is not there
                raise ValueError(f"there is no arm {whole}{suggest(whole, [one for one in self.arms if one != name])}")
            if not ARM_NAME.fullmatch(name) or name == TEACHER:
                raise ValueError(
                    f"an arm cannot be called {name!r}: a name has letters, digits, -, + and _, and is not {TEACHER}"
                )
            if arm is not None and not isinstance(arm, dict):
                raise ValueError(f"arm {name} must be a mapping of keys to values, got {arm!r}")

    def _check_contrasts(self) -> None:
        for pair in self.pairs:
            for name in pair:
                require_choice("arm in contrasts", name, self.arms)
            if pair[0] == pair[1]:
                raise ValueError(f"contrasts: {pair[0]} is compared with itself")
        for first, second in self.pairs:
            if self.pairs.count((first, second)) + self.pairs.count((second, first)) > 1:
                raise ValueError(f"contrasts: {first} and {second} are there twice")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The contrasts, by the arms' names."""
        return tuple((_name(first), _name(second)) for first, second in self.contrasts)

    @property
    def chosen_metric(self) -> str:
        """By which arms are compared."""
        return self.metric or WORLDS[self.world].metric

    @property
    def chosen_direction(self) -> Direction:
        """Which direction of it is better."""
        return METRICS[self.chosen_metric].direction if self.direction == "auto" else self.direction

    @property
    def chosen_seeds(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))


def _name(key: object) -> str:
    return "null" if key is None else str(key)
