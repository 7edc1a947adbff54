"""What a sweep says: how much of the score each size keeps, and the smallest that keeps enough, as a sentence.

Symbols: what a student *keeps* is its score between random play (0) and its teacher (1). Contract: with one seed of a
size the interval is over its games and the teacher's, with several it is over seeds; nothing is said of a size whose
runs are not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from polydistill.runs import read_summary
from polydistill.statistics import Interval, t_interval
from polydistill.study.records import RunRecord
from polydistill_agents.lineage.compression.loaders import OWN
from polydistill_agents.lineage.compression.weighing import Weighed


class Kept(NamedTuple):
    """What the students of a size reach.

    Attributes:
        name: of the size.
        score: mean over its seeds.
        share: of the teacher's score above random play; None: there is nothing between these two.
        interval: of ``share``; None: too few games, or there is none.
        runs: how many seeds are in.
        games: of each.
        stem: path of the first student's files, without an ending.
    """

    name: str
    score: float
    share: float | None
    interval: Interval | None
    runs: int
    games: int
    stem: Path


def read_kept(out: Path, names: Sequence[str], records: Sequence[RunRecord]) -> list[Kept]:
    """What each size has reached, of those that have finished runs.

    Args:
        out: folder of the sweep.
        names: of the sizes, in their order.
        records: of the runs.
    """
    found = []
    for name in names:
        done = [record for record in records if record.arm == name and record.status == "done"]
        if done:
            found.append(_of_size(out, name, done))
    return found


def _of_size(out: Path, name: str, done: Sequence[RunRecord]) -> Kept:
    shares = [record.metrics["teacher_normalized"] for record in done if "teacher_normalized" in record.metrics]
    whole = len(shares) == len(done)
    metrics = read_summary(out / done[0].folder)["generations"][-1]["metrics"]
    interval = None
    if whole and len(done) > 1:
        interval = t_interval(shares)
    elif whole and metrics["teacher_normalized_ci95"] is not None:
        interval = Interval(*metrics["teacher_normalized_ci95"])
    return Kept(
        name,
        score=sum(record.metrics["score_mean"] for record in done) / len(done),
        share=sum(shares) / len(shares) if whole else None,
        interval=interval,
        runs=len(done),
        games=metrics["episodes"],
        stem=out / done[0].folder / "student",
    )


def read_teacher(out: Path, records: Sequence[RunRecord]) -> float | None:
    """The teacher's mean score over its games in the first finished run; None: there is none."""
    done = next((record for record in records if record.status == "done"), None)
    if done is None:
        return None
    return float(read_summary(out / done.folder)["generations"][0]["metrics"]["score_mean"])


def choose(kept: Sequence[Kept], weighed: Weighed, enough: float) -> Kept | None:
    """The smallest that keeps enough; where none does, the one that keeps most; None: no share is known."""
    known = [one for one in kept if one.share is not None]
    good = [one for one in known if one.share is not None and one.share >= enough]
    if good:
        return min(good, key=lambda one: weighed.students[one.name].parameters)
    return max(known, key=lambda one: one.share or 0.0, default=None)


def say(kept: Sequence[Kept], weighed: Weighed, enough: float) -> list[str]:
    """The answer in sentences: the chosen student, and how it was chosen."""
    chosen = choose(kept, weighed, enough)
    if chosen is None or chosen.share is None:
        return ["The teacher scores no more than random play, so no student can keep a share of it."]
    own, teacher = weighed.students[chosen.name], weighed.teacher
    first = (
        f"{chosen.name}, a student of {tell_percent(own.parameters / teacher.parameters)} of the parameters, keeps "
        f"{chosen.share:.2f}{_over(chosen)} of the score and answers in {tell_seconds(own.decision)} instead of "
        f"{tell_seconds(teacher.decision)}."
    )
    n_sizes = f"{len(kept)} size{'s' * (len(kept) != 1)}"
    if chosen.share >= enough and all(own.parameters <= weighed.students[one.name].parameters for one in kept):
        return [first, f"It is the smallest of {n_sizes}, so a smaller one may keep {enough:g}, too (--sizes)."]
    if chosen.share >= enough:
        return [first, f"It is the smallest of {n_sizes} that keeps at least {enough:g}."]
    return [first, f"It keeps the most of {n_sizes}: none keeps {enough:g}."]


def _over(chosen: Kept) -> str:
    if chosen.interval is None:
        return ""
    over = f"{chosen.runs} seeds" if chosen.runs > 1 else f"{chosen.games} games of one seed"
    return f" ({chosen.interval.low:.2f} to {chosen.interval.high:.2f} over {over})"


def notes(kept: Sequence[Kept], weighed: Weighed) -> list[str]:
    """What a reader must know, one line each."""
    lines = [
        "The score kept is between that of random play (0) and that of the teacher (1).",
        f"Times are of one decision on one thread of {weighed.machine}; those of the answer by {OWN}, for teacher and "
        "student alike.",
    ]
    if any(one.runs == 1 for one in kept):
        lines.append(
            "With one seed of a size the interval is over games: another student of that size may differ by more. "
            "--seeds 5 has five of each."
        )
    if len(kept) > 1:
        lines.append("The size was chosen by the same games that score it, which favours it a little.")
    lines += [f"No times of {loader}: {why}." for loader, why in weighed.absent.items()]
    larger = [one.name for one in kept if weighed.students[one.name].parameters > weighed.teacher.parameters]
    if larger:
        lines.append(f"Larger than the teacher: {', '.join(larger)}.")
    compact = [one.name for one in kept if ".zip" not in weighed.students[one.name].n_bytes]
    if compact:
        lines.append(f"Wider than any network of DQN.load, so in a compact file alone: {', '.join(compact)}.")
    return lines


def tell_seconds(seconds: float) -> str:
    """In words.

    Example:
        >>> tell_seconds(3.14e-5), tell_seconds(0.0123), tell_seconds(2.4e-4)
        ('31 us', '12.3 ms', '240 us')
    """
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def tell_percent(share: float) -> str:
    """In words, with as many digits as matter.

    Example:
        >>> tell_percent(0.0412), tell_percent(0.253), tell_percent(1.0)
        ('4.1%', '25%', '100%')
    """
    return f"{100 * share:.1f}%" if share < 0.0995 else f"{100 * share:.0f}%"
