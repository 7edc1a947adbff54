"""From what a user says of a study to its plan: every arm's whole config, checked before anything runs.

Arms of a seed share what is measured and with what: teacher, data, evaluation, device, threads, precision. So an arm
may set how a student is made and learns, and no more; what holds for all is a setting of the study.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from polydistill.config.parsing import read_config
from polydistill.config.plain_yaml import flatten, to_mapping
from polydistill.errors import UserError, suggest
from polydistill.learning.taught import TaughtLineage, foreign_options
from polydistill.losses import OBJECTIVES
from polydistill.provenance import git_state
from polydistill.runs.folder import SEED
from polydistill.study.config import StudyConfig
from polydistill.study.datasets import require_own_files
from polydistill.study.plan import ENSEMBLE, Arm, Plan
from polydistill.study.records import TEACHER
from polydistill.study.worlds import CLONE, World, WorldConfig

# groups of a world's config in which arms may differ
GROUPS = ("student", "training", "augmentation", "play", "lineage", "learn_on", "teacher")
OF_A_RUN = {"seed": "first_seed and seeds say which"}  # no setting of a study
GIVEN = "teacher.path"
OF_THE_GIVEN = (GIVEN, "teacher.network", "teacher.pretrained", "teacher.classes")  # whom they name
ONE_CORE = {"threads": 1}


def make_plan(config: StudyConfig, world: World, file: Path | None, stored: Plan | None = None) -> Plan:
    """The plan of a study, without amendments.

    Args:
        config: of the study.
        world: of its runs.
        file: of ``config``, beside which its base may lie.
        stored: the plan that is continued, whose device and precision replace auto.

    Raises:
        UserError: an arm or a setting is not one of the world, or arms differ in what they must share, or two runs
            would write the same file.
    """
    base_file = _find_base(config.base, file)
    settings = _flat("settings", config.settings)
    _refuse(settings, OF_A_RUN, "settings")
    resolve = _Resolver(world, base_file, settings, stored)
    base = resolve("settings", {})
    given = any(base.get("teacher", {}).get(name) for name in ("path", "pretrained"))
    trains = world.trains_teachers and not given
    arms = tuple(
        _make_ensemble(name, keys, config, world, base)
        if is_ensemble(keys)
        else _make_arm(name, keys, config, resolve, trains)
        for name, keys in config.arms.items()
    )
    _refuse_circles(arms)
    _refuse_twins(arms)
    commit = git_state(CLONE)
    plan = Plan(
        world=world.name,
        base=base,
        arms=arms,
        teacher=resolve("the teacher", {"lineage.generations": 0}) if trains else None,
        contrasts=config.pairs,
        seeds=config.chosen_seeds,
        metric=config.chosen_metric,
        direction=config.chosen_direction,
        margin=config.margin,
        alpha=config.alpha,
        commit=None if commit is None else commit["commit"] + (" with changes" if commit["dirty"] else ""),
    )
    require_own_files(plan)
    return plan


def leaves_gpu(config: StudyConfig, world: World, file: Path | None, plan: Plan) -> bool:
    """Whether the runs of a plan are on the CPU beside a GPU, and nobody has said so.

    Args:
        config: of the study.
        world: of its runs.
        file: of ``config``.
        plan: that was made of it.
    """
    if plan.base.get("device") != "cpu" or not torch.cuda.is_available():
        return False
    settings = _flat("settings", config.settings)
    said = read_config(world.config_class, _find_base(config.base, file), settings, world.default)
    return str(said.device) == "auto"


class _Resolver:
    """Reads the config of an arm, on one core of this machine."""

    def __init__(self, world: World, file: Path | None, settings: Mapping[str, Any], stored: Plan | None) -> None:
        self.world, self.file, self.settings = world, file, settings
        self.stored = None if stored is None else stored.base
        self.base = self._read("settings", {})

    def __call__(self, whose: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The config of an arm in plain values, without its seed."""
        mapping = to_mapping(self.read(whose, overrides))
        del mapping["seed"]
        for key in self.world.younger:
            group, _, name = key.rpartition(".")
            table = mapping[group] if group else mapping
            if not table[name]:
                del table[name]
        return mapping

    def read(self, whose: str, overrides: Mapping[str, Any]) -> WorldConfig:
        """The config of an arm, resolved, with what would follow from its student alone as all arms have it."""
        overrides = {**self._left_behind(overrides), **overrides}
        config = self._read(whose, overrides)
        shared = {} if self.world.as_base is None else self.world.as_base(self.base, config)
        return self._read(whose, {**overrides, **shared}) if shared else config

    def _left_behind(self, overrides: Mapping[str, Any]) -> dict[str, None]:
        """The options of the base's objective that the arm's own does not have, and so does not take over."""
        objective = overrides.get("student.objective")
        if not issubclass(self.world.config_class, TaughtLineage) or str(objective) not in OBJECTIVES:
            return {}
        student = to_mapping(self.base)["student"]
        foreign = (name for name in foreign_options(str(objective)) if student.get(name) is not None)
        return {f"student.{name}": None for name in foreign}

    def _read(self, whose: str, overrides: Mapping[str, Any]) -> WorldConfig:
        try:
            config = read_config(
                self.world.config_class, self.file, {**self.settings, **ONE_CORE, **overrides}, self.world.default
            )
        except UserError as error:
            raise UserError(str(error) if str(self.file) in str(error) else f"{whose}: {error}") from error
        if config.device == "auto":  # processes of one core each would share one GPU
            config = dataclasses.replace(config, device=(self.stored or {}).get("device", "cpu"))
        resolved: WorldConfig = config.resolve(self.stored)
        return resolved


def _find_base(base: str, file: Path | None) -> Path | None:
    """The config that arms change: as it is called from here, beside the study's file, or in the clone."""
    if not base:
        return None
    tried = [Path(base), *([] if file is None else [file.parent / base]), CLONE / base]
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        raise UserError(f"there is no base {base}, neither here nor beside the study's file nor in the clone")
    return found


def _flat(whose: str, keys: Mapping[Any, Any] | None) -> dict[str, Any]:
    """Keys with dots, however they were nested.

    Raises:
        UserError: one is there twice.
    """
    flat: dict[str, Any] = {}
    for key, value in flatten(keys or {}):
        if key in flat:
            raise UserError(f"{whose}: the key {key} is there twice")
        flat[key] = value
    return flat


def _refuse(keys: Mapping[str, Any], reasons: Mapping[str, str], whose: str) -> None:
    for key in keys:
        if key in reasons:
            raise UserError(f"{whose}: {key} cannot be set: {reasons[key]}")


def _make_arm(name: str, keys: Mapping[Any, Any] | None, config: StudyConfig, resolve: _Resolver, trains: bool) -> Arm:
    whose = f"arm {name}"
    overrides = _flat(whose, keys)
    teacher = overrides.pop("teacher", TEACHER if trains else "")
    if not isinstance(teacher, str):
        raise UserError(f"{whose}: teacher must be the name of an arm, got {teacher!r}")
    if teacher not in {*config.arms, TEACHER if trains else ""}:
        raise UserError(f"{whose}: its teacher {teacher!r} is no arm{suggest(teacher, config.arms)}")
    if is_ensemble(config.arms.get(teacher)):
        raise UserError(f"{whose}: its teacher {teacher} is an ensemble, which is no network; name one of its members")
    taught = _as_teacher(teacher, config, resolve)
    whole = resolve(whose, {**taught, **overrides})  # first: a key that the world does not know is the likelier slip
    for key in overrides:
        _check_key(whose, key, trains)
    return Arm(name, overrides, teacher, whole)


def _as_teacher(name: str, config: StudyConfig, resolve: _Resolver) -> Mapping[str, Any]:
    """The keys by which the student of the arm ``name``, and whoever teaches that one, is another teacher than the
    seed's own."""
    as_teacher = resolve.world.as_teacher
    if as_teacher is None:
        return {}
    chain: list[tuple[str, dict[str, Any]]] = []
    while name in config.arms and not is_ensemble(config.arms[name]) and name not in dict(chain):
        keys = _flat(f"arm {name}", config.arms[name])
        chain.append((name, keys))
        name = str(keys.pop("teacher", ""))
    found: Mapping[str, Any] = {}
    for arm, keys in reversed(chain):
        found = as_teacher(resolve.read(f"arm {arm}", {**found, **keys}))
    return found


def is_ensemble(keys: Mapping[Any, Any] | None) -> bool:
    """Whether an arm with these keys is an ensemble of others."""
    return keys is not None and ENSEMBLE in keys


def _make_ensemble(
    name: str, keys: Mapping[Any, Any], config: StudyConfig, world: World, base: Mapping[str, Any]
) -> Arm:
    whose = f"arm {name}"
    if world.ensemble is None:
        raise UserError(f"{whose} is an ensemble, which the world {world.name} cannot measure; leave the arm out")
    others = [key for key in keys if key != ENSEMBLE]
    if others:
        raise UserError(f"{whose} is an ensemble, which trains nothing: it cannot set {others[0]}")
    members = _check_members(whose, keys[ENSEMBLE], config.arms)
    shared = {field.name for field in dataclasses.fields(world.ensemble.config_class)}
    settings = {key: value for key, value in flatten(base) if key.partition(".")[0] in shared}
    folders = [f"../../{member}/seed{SEED}" for member in members]  # from the folder of a run
    mapping = to_mapping(read_config(world.ensemble.config_class, None, {**settings, "members": folders}))
    del mapping["seed"]
    return Arm(name, {ENSEMBLE: members}, "", mapping)


def _check_members(whose: str, named: Any, arms: Mapping[str, Any]) -> list[str]:
    """The names of the members of an ensemble, checked."""
    members = ["null" if name is None else str(name) for name in named] if isinstance(named, list | tuple) else []
    if len(members) < 2 or len(set(members)) < len(members):
        raise UserError(f"{whose}: an ensemble is a list of at least 2 arms, each once, got {named!r}")
    for member in members:
        if member not in arms:
            raise UserError(f"{whose}: its member {member!r} is no arm{suggest(member, arms)}")
        if is_ensemble(arms[member]):
            raise UserError(f"{whose}: its member {member} is an ensemble; name the arms of that instead")
    return members


def _check_key(whose: str, key: str, trains: bool) -> None:
    """Refuse a key in which arms of a seed must not differ."""
    group = key.partition(".")[0]
    if group not in GROUPS or "." not in key:
        raise UserError(
            f"{whose} sets {key}, which all arms share: put it under settings (an arm sets {', '.join(GROUPS[:-1])})"
        )
    if key == GIVEN or (key in OF_THE_GIVEN and not trains):
        raise UserError(
            f"{whose} sets {key}: arms of a seed share their teacher; `teacher: NAME` takes an arm's student"
        )
    if group == "teacher" and trains:
        raise UserError(f"{whose} sets {key}: arms of a seed share their teacher; put it under settings")


def _refuse_circles(arms: tuple[Arm, ...]) -> None:
    teachers = {arm.name: arm.teacher for arm in arms}
    for name in teachers:
        way = [name]
        while teachers.get(way[-1]) in teachers:
            way.append(teachers[way[-1]])
            if way[-1] in way[:-1]:
                raise UserError(f"arms teach each other in a circle: {' learns from '.join(way)}")


def _refuse_twins(arms: tuple[Arm, ...]) -> None:
    """Refuse arms that are the same to the last bit: their differences would all be zero."""
    for index, arm in enumerate(arms):
        for other in arms[:index]:
            if arm.members and sorted(arm.members) == sorted(other.members):
                raise UserError(f"arms {other.name} and {arm.name} are ensembles of the same members")
            if (arm.teacher, arm.config) == (other.teacher, other.config):
                raise UserError(
                    f"arms {other.name} and {arm.name} are the same run: nothing that they set differs; a second "
                    "student of one teacher needs student.repeat: 1"
                )
