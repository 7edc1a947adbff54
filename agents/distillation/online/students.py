"""The students of a callback: what they are called, and how each is built from its teacher and its teacher's game."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium import spaces

from polydistill.errors import suggest
from polydistill.streams import derive_seed, torch_stream
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.distillation.settings import check_spaces, fitting_policy
from polydistill_agents.networks.fitting import tell_space
from polydistill_agents.networks.nature import SIZES, Size, fits_stock, name_size
from polydistill_agents.teachers import Teacher

OWN_SIZE = "teacher"  # as a student: of the teacher's own architecture
Wanted = str | Size | Sequence[int]  # a name of SIZES, "teacher", widths of a Nature-CNN, or of linear layers


def name_students(students: Any) -> dict[str, Wanted]:
    """The students that are asked for, by name.

    Args:
        students: one, a list of them, or a table from names to them; each is a name of ``SIZES``, a ``Size``, a list of
            the widths of linear layers, or "teacher".

    Raises:
        ValueError: there is none, or one is something else.

    Example:
        >>> name_students(["net1", "net1", [64, 64]])
        {'net1': 'net1', 'net1_2': 'net1', '64x64': [64, 64]}
    """
    if isinstance(students, Mapping):
        named = {str(name): wanted for name, wanted in students.items()}
    else:
        named = {}
        for wanted in [students] if isinstance(students, str | Size) or _are_widths(students) else list(students or ()):
            base = name = _name(wanted)
            number = 1
            while name in named:
                number += 1
                name = f"{base}_{number}"
            named[name] = wanted
    if not named:
        raise ValueError('students is empty: name at least one, as students=["net2"], or [[64, 64]] for numbers')
    for name, wanted in named.items():
        _check(name, wanted)
    return named


def _name(wanted: Any) -> str:
    if isinstance(wanted, Size):
        return name_size(wanted)
    return "x".join(map(str, wanted)) if _are_widths(wanted) else str(wanted)


def _are_widths(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(type(one) is int and one > 0 for one in value)


def _check(name: str, wanted: Any) -> None:
    if not name or name != name.strip(". ") or any(sign in name for sign in "/\\\0"):
        raise ValueError(f"students: {name!r} is no name for a file")
    known = (*SIZES, OWN_SIZE)
    if isinstance(wanted, str) and wanted not in known:
        raise ValueError(f"students: unknown {wanted!r}{suggest(wanted, known)} (there are {', '.join(known)})")
    if isinstance(wanted, Size) and not fits_stock(wanted):
        raise ValueError(f"students: the channels of {name_size(wanted)} do not fit Stable-Baselines3's NatureCNN")
    if not isinstance(wanted, str | Size) and not _are_widths(wanted):
        raise ValueError(f"students: each is one of {', '.join(known)}, or widths as [64, 64], got {wanted!r:.80}")


def make_students(
    wanted: Mapping[str, Wanted],
    teacher: Teacher,
    action_space: spaces.Space[Any],
    seed: int,
    options: Mapping[str, Any],
) -> dict[str, PolicyDistillation]:
    """Untrained students, which draw the same batches and begin with different weights.

    Args:
        wanted: see :func:`name_students`.
        teacher: as it is now; it tells what it sees.
        action_space: of the game; copied, as is the space that the teacher sees: both have generators.
        seed: root of the random streams.
        options: of :class:`~polydistill_agents.distillation.algorithm.PolicyDistillation`.

    Raises:
        ValueError: one that does not fit the observations, or an option that cannot work.
    """
    made = {}
    for number, (name, one) in enumerate(wanted.items(), 1):
        own = derive_seed(seed, "student that learns online", number) % 2**31
        made[name] = _make(one, teacher, action_space, own, options)
        made[name].learner.order = torch_stream(seed, "data order of students that learn online")
    return made


def _make(
    wanted: Wanted, teacher: Teacher, action_space: spaces.Space[Any], seed: int, options: Mapping[str, Any]
) -> PolicyDistillation:
    space = teacher.observation_space
    assert space is not None
    policy = fitting_policy(space)
    check_spaces(policy, space, action_space)
    network = _network(wanted, policy, space)
    student = PolicyDistillation(policy, None, teacher, seed=seed, _init_setup_model=False, **network, **options)
    # without an environment: nobody plays for it
    student.observation_space, student.action_space = copy.deepcopy(space), copy.deepcopy(action_space)
    student.n_envs = 1
    student._setup_model()
    return student


def _network(wanted: Wanted, policy: str, space: spaces.Space[Any]) -> dict[str, Any]:
    """What a ``PolicyDistillation`` is told of the network."""
    if wanted == OWN_SIZE:
        return {}
    if isinstance(wanted, str | Size):
        if policy != "CnnPolicy":
            shown = tell_space(space)
            raise ValueError(
                f"students: {_name(wanted)} is of frames; for observations {shown} give widths, as [64, 64]"
            )
        return {"size": wanted}
    return {"policy_kwargs": {"net_arch": list(wanted)}}
