"""The result of a distillation as a table, made from summary.json alone: a finished run prints it again."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from polydistill.lineage.ensembles import name_members
from polydistill.runs import NARROW, format_interval, format_narrow_table, format_table
from polydistill.statistics import FEWEST, ROUGH
from polydistill_agents.environments.random_play import no_better_than_random
from polydistill_agents.environments.task import open_task

HEADERS = (
    "who", "score", "95% over games", "of human", "of teacher", "of teacher, 95% over games", "agreement", "invalid",
    "masked score", "score after", "parameters", "seconds",
)  # fmt: skip
IMPORTANCE = (
    "who", "score", "95% over games", "of teacher", "score after", "agreement", "parameters", "invalid", "masked score",
    "of human", "seconds", "of teacher, 95% over games",
)  # fmt: skip
OPTIONAL = ("of human", "invalid", "masked score", "score after")  # columns that most tables would leave empty
Row = dict[str, str | float | None]


def format_summary(summary: Mapping[str, Any], wide: bool = False) -> str:
    """Teacher and students, best read top to bottom, below random play and a human player where their scores are known;
    then ensembles of students, whose agreement is with the teacher.

    Args:
        summary: what summary.json holds.
        wide: all columns; else those that matter most, in 80 characters.
    """
    if "members" in summary:
        return _format_members(summary, wide)
    title = _title(summary["config"], summary["generations"][-1]["metrics"], summary["seed"])
    return "\n".join([title, "", _format_rows(rows_of(summary), wide), *format_notes(notes_of(summary))])


def rows_of(summary: Mapping[str, Any]) -> list[Row]:
    """The rows of the table, each a value of some of ``HEADERS``."""
    rows = [*_baselines(summary["config"], summary["generations"][0]["metrics"])]
    for generation, seconds in zip(summary["generations"], summary["seconds"], strict=True):
        who, metrics = _who(generation), generation["metrics"]
        rows.append(_member(who, metrics) | {"parameters": generation["parameters"], "seconds": f"{seconds:.0f}"})
    for ensemble in summary["ensembles"]:
        who, metrics = f"ensemble of {name_members(ensemble['members'])}", ensemble["metrics"]
        parameters = sum(summary["generations"][member]["parameters"] for member in ensemble["members"])
        rows.append(_member(who, metrics) | {"parameters": parameters})
    return rows


def notes_of(summary: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know, one line each."""
    config, generations = summary["config"], summary["generations"]
    first = generations[0]["metrics"]
    records = [GamesPlayed.of_metrics(_who(generation), generation["metrics"]) for generation in generations]
    for ensemble in summary["ensembles"]:
        who = f"ensemble of {name_members(ensemble['members'])}"
        records.append(GamesPlayed.of_metrics(who, ensemble["metrics"]))
    found = notes(config.get("game"), first["protocol"], _without_own_limit(config, records))
    return [*found, *_told(generations[0]), *_no_scale(first), *_without_memory(generations)]


def told_columns(rows: Sequence[Row]) -> list[str]:
    """``HEADERS`` without optional columns of which no row has a value."""
    return [name for name in HEADERS if name not in OPTIONAL or any(row.get(name) is not None for row in rows)]


def _who(generation: Mapping[str, Any]) -> str:
    return "teacher" if generation["generation"] == 0 else f"student {generation['generation']}"


def _title(played: Mapping[str, Any], scored: Mapping[str, Any], seed: int) -> str:
    name = played.get("game") or played["env"]
    return f"{name}, {count_games(scored['episodes'])} each, protocol {scored['protocol']}, seed {seed}"


def _format_rows(rows: Sequence[Row], wide: bool, left_out: Sequence[str] = ()) -> str:
    """The table."""
    told = [name for name in told_columns(rows) if name not in left_out]
    table = [[row.get(name) for name in told] for row in rows]
    if wide:
        return format_table(told, table)
    return format_narrow_table(told, table, [name for name in IMPORTANCE if name in told])


def _format_members(summary: Mapping[str, Any], wide: bool) -> str:
    """An ensemble of the students of several runs, below its members; ``teacher`` is that of the first of them."""
    played, first, members = summary["played"], summary["teacher"]["metrics"], summary["members"]
    (ensemble,) = summary["ensembles"]
    everyone = [("teacher", first), *((member["folder"], member["metrics"]) for member in members)]
    everyone.append((f"ensemble of the {len(members)}", ensemble["metrics"]))
    weights = [member["parameters"] for member in members]
    parameters = [None, *weights, sum(weights)]
    rows = [_member(who, metrics) | {"parameters": n} for (who, metrics), n in zip(everyone, parameters, strict=True)]
    records = [GamesPlayed.of_metrics(who, metrics) for who, metrics in everyone]
    found = notes(played.get("game"), first["protocol"], _without_own_limit(played, records))
    table = _format_rows([*_baselines(played, first), *rows], wide, left_out=("agreement", "seconds"))
    return "\n".join([_title(played, first, summary["seed"]), "", table, *format_notes([*found, *_no_scale(first)])])


def _baselines(config: Mapping[str, Any], teacher: Mapping[str, Any]) -> Iterator[Row]:
    """Random play and a human, from the table of a game, or random play as it was measured."""
    if "random_mean" in teacher:
        yield {
            "who": "random",
            "score": format_points(teacher["random_mean"]),
            "95% over games": format_points_interval(teacher["random_ci95"]),
        }
        return
    row = open_task(config["game"]).reference
    if row is not None:
        for name, score, of_human in (("random", row.random, 0.0), ("human", row.human, 1.0)):
            yield {"who": name, "score": format_points(score), "of human": f"{of_human:.2f}"}


def _member(who: str, metrics: Mapping[str, Any]) -> Row:
    invalid, masked = metrics.get("invalid_share"), metrics.get("masked_score_mean")
    after = metrics.get("score_after")
    return {
        "who": who,
        "score": format_points(metrics["score_mean"]),
        "95% over games": format_points_interval(metrics["score_ci95"]),
        "of human": format_number(metrics["human_normalized"]),
        "of teacher": format_number(metrics["teacher_normalized"], 3),
        "of teacher, 95% over games": format_interval(metrics["teacher_normalized_ci95"], 3),
        "agreement": format_number(metrics["agreement"], 3),
        "invalid": None if invalid is None else f"{100 * invalid:.1f}%",
        "masked score": None if masked is None else format_points(masked),
        "score after": None if after is None else format_points(after),
    }


def _without_own_limit(config: Mapping[str, Any], played: Sequence[GamesPlayed]) -> list[GamesPlayed]:
    """Where games end at the environment's own limit of steps, none was cut."""
    cut = "game" in config or config["env_max_steps"]
    return list(played) if cut else [one._replace(truncated=0) for one in played]


def _no_scale(teacher: Mapping[str, Any]) -> list[str]:
    """Why no score of a student is given between random play and the teacher."""
    if "random_scores" not in teacher:
        return []
    why = no_better_than_random(teacher["scores"], teacher["random_scores"])
    return [] if why is None else [why]


def _told(teacher: Mapping[str, Any]) -> list[str]:
    """Whose games the teacher's score is of, where it did not play."""
    if "dataset_sha256" not in teacher["metrics"] or teacher["sha256"] is not None:
        return []
    games = count_games(teacher["metrics"]["episodes"])
    return [f"the teacher's score is that of {games} of which the data set tells: it did not play here"]


def _without_memory(generations: Sequence[Mapping[str, Any]]) -> list[str]:
    """What it costs that a student does not remember, where its teacher does."""
    if not generations[0]["metrics"].get("has_memory") or len(generations) == 1:
        return []
    share = format_number(generations[1]["metrics"]["teacher_normalized"], 3)
    kept = "" if share is None else f": it keeps {share} of what the teacher scores above random play"
    return [f"the teacher remembers earlier steps, student 1 sees one observation alone{kept}"]


class GamesPlayed(NamedTuple):
    """What :func:`notes` looks at: who played how many games, how many were cut, with how many actions of how many.

    ``n_actions`` and ``game_actions`` are 0 where they are not known.
    """

    who: str
    episodes: int
    truncated: int
    n_actions: int
    game_actions: int

    @classmethod
    def of_metrics(cls, who: str, metrics: Mapping[str, Any]) -> GamesPlayed:
        """Of the metrics in summary.json; earlier versions did not write the last three."""
        counts = (metrics.get(name, 0) for name in ("truncated", "n_actions", "game_actions"))
        return cls(who, metrics["episodes"], *counts)


def notes(game: str | None, protocol: str, played: Sequence[GamesPlayed]) -> list[str]:
    """What a reader of the scores must know, one line each; usually nothing.

    Args:
        game: of Atari; None where an environment of gymnasium was played.
        protocol: name of the protocol.
        played: by whom.
    """
    found = []
    rules = None if game is None else open_task(game).protocol(protocol)
    fewest = min((one.episodes for one in played), default=ROUGH)
    if fewest < FEWEST:
        found.append(f"fewer than {FEWEST} games have no interval")
    elif fewest < ROUGH:
        found.append(f"fewer than {ROUGH} games: the interval is rough")
    for one in played:
        if one.truncated:
            limit = "the limit of steps" if rules is None else f"{rules.max_steps:,} steps"
            found.append(f"{one.who}: {one.truncated} of {one.episodes} games were cut at {limit}")
    if rules is not None and any(one.truncated for one in played) and not rules.fire_on_reset:
        found.append(f"{protocol} presses no FIRE: an agent that learned with FIRE may wait forever")
    everything = [one for one in played if one.n_actions > one.game_actions > 0]
    if everything:
        who = "" if len(everything) == len(played) > 1 else ", ".join(one.who for one in everything) + ": "
        actions, own = everything[0].n_actions, everything[0].game_actions
        found.append(f"{who}all {actions} actions of the joystick, where {game} uses {own}")
    return found


def format_notes(found: Sequence[str], width: int = NARROW) -> list[str]:
    """The lines that stand below a table."""
    return [textwrap.fill(f"note: {note}", width, subsequent_indent="  ", break_long_words=False) for note in found]


def count_games(episodes: int) -> str:
    """``1 full game``, ``30 full games``."""
    return f"{episodes:,} full game{'s' * (episodes != 1)}"


def format_points(score: float) -> str:
    """Points of a game, with as many digits as matter."""
    return f"{score:z.{_digits(score)}f}"


def format_points_interval(ends: Sequence[float | None] | None) -> str:
    """:func:`~polydistill.runs.format_interval` for points of a game."""
    return format_interval(ends, min((_digits(end) for end in ends or () if end is not None), default=2))


def _digits(points: float) -> int:
    size = abs(points)
    return 2 if size < 100 else 1 if size < 1000 else 0


def format_number(value: float | None, digits: int = 2) -> str | None:
    """A number of a table; None stays."""
    return None if value is None else f"{value:z.{digits}f}"
