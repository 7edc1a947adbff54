"""Test errors in % that the born-again paper states (Furlanello et al. 2018, tables 1 to 5), one run each.

``teacher`` is generation 0 trained on labels; the others are students of the same architecture by that objective.
``chain`` is BAN-1, BAN-2, BAN-3: generations, where ``ban`` is another student of generation 1 (another seed).
``ensembles`` are of 2 and 3 consecutive generations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from polydistill.vision.networks.sharing import ROLES


class PaperRow(NamedTuple):
    """One row of the paper's tables; None or a missing objective: the paper has no such cell."""

    teacher: float
    objectives: dict[str, float]
    chain: tuple[float, ...] = ()
    ensembles: tuple[float, ...] = ()


def _dense(
    teacher: float,
    students: tuple[float, float, float, float],
    chain: tuple[float, ...],
    ensembles: tuple[float, float],
) -> PaperRow:
    return PaperRow(teacher, dict(zip(("ban", "ban_l", "cwtm", "dkpp"), students, strict=True)), chain, ensembles)


PAPER: dict[tuple[str, str], PaperRow] = {
    # table 3, left
    ("cifar100", "wrn-28-1"): PaperRow(30.05, {"ban": 29.43}),
    ("cifar100", "wrn-28-2"): PaperRow(25.32, {"ban": 24.38}),
    ("cifar100", "wrn-28-5"): PaperRow(20.88, {"ban": 20.93}),
    ("cifar100", "wrn-28-10"): PaperRow(19.08, {"ban": 18.25}),
    # table 5, learning from labels alone
    ("cifar100", "preact-bottleneck-1001"): PaperRow(22.71, {}),
    ("cifar100", "bottleneck-14-0.5-like-densenet-90-60"): PaperRow(20.28, {}),
    ("cifar100", "bottleneck-14-1-like-densenet-90-60"): PaperRow(18.84, {}),
    ("cifar100", "wide-1-1-like-densenet-90-60"): PaperRow(20.4, {}),
    ("cifar100", "wide-2-1-like-densenet-90-60"): PaperRow(18.83, {}),
    ("cifar100", "wide-4-0.5-like-densenet-90-60"): PaperRow(19.63, {}),
    ("cifar100", "wide-4-1-like-densenet-90-60"): PaperRow(18.77, {}),
    # table 2
    ("cifar100", "densenet-112-33"): _dense(18.25, (16.95, 17.68, 17.84, 17.84), (17.61, 17.22, 16.59), (15.77, 15.68)),
    ("cifar100", "densenet-90-60"): _dense(17.69, (16.69, 16.93, 17.42, 17.43), (16.62, 16.44, 16.72), (15.39, 15.74)),
    ("cifar100", "densenet-80-80"): _dense(17.16, (16.36, 16.50, 17.16, 16.84), (16.26, 16.30, 15.50), (15.46, 15.14)),
    # there is no BAN-3: the teacher is the third member of the ensemble of 3
    ("cifar100", "densenet-80-120"): _dense(16.87, (16.00, 16.41, 17.12, 16.34), (16.13, 16.13), (15.13, 14.90)),
    # table 1
    ("cifar10", "wrn-28-1"): PaperRow(6.69, {"ban": 6.64}),
    ("cifar10", "wrn-28-2"): PaperRow(5.06, {"ban": 4.86}),
    ("cifar10", "wrn-28-5"): PaperRow(4.13, {"ban": 4.03}),
    ("cifar10", "wrn-28-10"): PaperRow(3.77, {"ban": 3.86}),
    ("cifar10", "densenet-112-33"): PaperRow(3.84, {"ban": 3.61}),
    ("cifar10", "densenet-90-60"): PaperRow(3.81, {"ban": 3.50}),
    ("cifar10", "densenet-80-80"): PaperRow(3.48, {"ban": 3.49}),
    ("cifar10", "densenet-80-120"): PaperRow(3.37, {"ban": 3.54}),
}

DENSE = "densenet-90-60"
# students by ban, on CIFAR-100, of another architecture than their teacher: (teacher, student)
CROSS: dict[tuple[str, str], float] = {
    # table 3, right
    ("wrn-28-1", DENSE): 24.93,
    ("wrn-28-2", DENSE): 18.49,
    ("wrn-28-5", DENSE): 17.52,
    ("wrn-28-10", DENSE): 16.79,
    # table 4
    (DENSE, f"{DENSE}-depth-0.5"): 16.95,
    (DENSE, f"{DENSE}-depth-2"): 16.43,
    (DENSE, f"{DENSE}-depth-3"): 16.64,
    (DENSE, f"{DENSE}-depth-4"): 16.64,
    (DENSE, f"{DENSE}-compression-0.5"): 19.83,
    (DENSE, f"{DENSE}-compression-0.75"): 17.3,
    (DENSE, f"{DENSE}-compression-1.5"): 18.89,
}

# table 5: the same, with the teacher's first and last layer in the student, frozen
SHARING: dict[tuple[str, str], float] = {
    (DENSE, f"bottleneck-14-0.5-like-{DENSE}"): 18.8,
    (DENSE, f"bottleneck-14-1-like-{DENSE}"): 17.39,
    (DENSE, f"wide-1-1-like-{DENSE}"): 19.12,
    (DENSE, f"wide-2-1-like-{DENSE}"): 17.42,
    (DENSE, f"wide-4-0.5-like-{DENSE}"): 17.13,
    (DENSE, f"wide-4-1-like-{DENSE}"): 17.18,
}


def paper_error(
    dataset: str, teacher: str, student: str, objective: str, generation: int, shared: Sequence[str] = ()
) -> float | None:
    """The paper's test error in % for that generation of a lineage; None where it has none.

    Args:
        dataset: cifar10 or cifar100.
        teacher: network of generation 0.
        student: network of the students.
        objective: of the students.
        generation: 0 is the teacher.
        shared: layers that the students have of their teacher, see :data:`polydistill.vision.networks.sharing.ROLES`.

    Example:
        >>> paper_error("cifar100", "wrn-28-1", "wrn-28-1", "ban", 1)
        29.43
    """
    row = PAPER.get((dataset, teacher))
    if row is None or generation == 0:
        return None if row is None else row.teacher
    if teacher != student or shared:
        tables: dict[frozenset[str], dict[tuple[str, str], float]] = {frozenset(): CROSS, frozenset(ROLES): SHARING}
        table = tables.get(frozenset(shared), {})
        return table.get((teacher, student)) if (dataset, objective, generation) == ("cifar100", "ban", 1) else None
    if generation == 1:
        return row.objectives.get(objective)
    chain = row.chain if objective == "ban" else ()
    return chain[generation - 1] if generation <= len(chain) else None
