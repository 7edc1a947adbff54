"""The model card of a teacher that ``train_teacher.py`` has trained, and of the students that learned beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polydistill.disk import disk_errors
from polydistill.errors import UserError
from polydistill.hub.card import ModelCard, Product
from polydistill.hub.citation import RUSU
from polydistill.hub.markup import bullets, code, table
from polydistill_agents.files.card import MAX_CARD_BYTES
from polydistill_agents.lineage.card_words import (
    OF_INTERVALS,
    gym_id,
    how_to_open,
    kind_in_words,
    mean_reward,
    protocol_in_words,
)
from polydistill_agents.lineage.report import count_games, format_number, format_points, format_points_interval

TEACHER = "teacher"  # its zip and its JSON


def read_training(out: Path) -> dict[str, Any]:
    """What ``teacher.json`` says, in the form of a run's summary.

    Raises:
        UserError: it is missing or damaged.
    """
    path = out / f"{TEACHER}.json"
    try:
        with disk_errors(path, "read"):
            if path.stat().st_size > MAX_CARD_BYTES:
                raise UserError(f"{path} has more than {MAX_CARD_BYTES:,} bytes")
            told = json.loads(path.read_text(encoding="utf-8"))
        students = told.get("students", [])
        agents = [{"name": TEACHER, "sha256": told["sha256"], "metrics": told["evaluation"]}]
        agents += [
            {"name": f"student {one['student']}", "sha256": one["sha256"], "metrics": one["evaluation"]}
            for one in students
        ]
        return {
            "kind": TEACHER,
            "seed": told["config"]["seed"],
            "generations": [{"generation": 0 if number == 0 else 1, **one} for number, one in enumerate(agents)],
            "wall_seconds": None,
            **{name: told[name] for name in ("command", "config", "game", "steps", "versions", "git")},
            "students": students,
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no card of a trained teacher: {error!r}") from error


def make_card(summary: Mapping[str, Any], out: Path, where: str = "") -> ModelCard:
    """See :func:`polydistill_agents.lineage.model_card.make_card`; of what :func:`read_training` gives.

    Raises:
        UserError: the teacher's zip is missing.
    """
    config, metrics = as_run(summary), summary["generations"][0]["metrics"]
    products = [*_products(summary, out)]
    if not products:
        raise UserError(f"{out} holds no {TEACHER}.zip")
    env, zipped = code(gym_id(config)), products[0].path
    ends = format_points_interval(metrics["score_ci95"])
    between = "" if ends is None else f" (95% over games: {ends})"
    learned = f"It learned from rewards in {summary['steps']:,} steps, with polydistill and Stable-Baselines3"
    beside = " Its students learned from its scores meanwhile." if summary["students"] else ""
    scored = f"In {count_games(metrics['episodes'])} it scores {format_points(metrics['score_mean'])}{between}."
    return ModelCard(
        title=f"A DQN for {env}",
        opening=f"A DQN that plays {env}. {learned}, and may teach others.{beside}\n\n{scored}",
        library="stable-baselines3",
        task="reinforcement-learning",
        tags=[
            gym_id(config),
            "deep-reinforcement-learning",
            "reinforcement-learning",
            "stable-baselines3",
            "atari",
            "polydistill",
        ],
        results=[mean_reward(config, metrics)],
        products=products,
        sections=[
            ("Scores", f"{_scores(summary)}\n\n{bullets([*protocol_in_words(config, metrics), OF_INTERVALS])}"),
            ("How to play it", f"{how_to_open(config, zipped, where)}\n\n{kind_in_words('q_values', zipped.name)}"),
            ("Limits", bullets([f"One training with one seed ({summary['seed']}); others would differ."])),
        ],
        teachers_licence="Nobody taught it." if not summary["students"] else "Nobody taught the teacher.",
        papers=[RUSU] if summary["students"] else [],
    )


def as_run(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's config that says what was played."""
    protocol = summary["generations"][0]["metrics"]["protocol"]
    return {"game": summary["game"], "evaluation": {"protocol": protocol, "play": "protocol"}}


def _products(summary: Mapping[str, Any], out: Path) -> Iterator[Product]:
    whose = {TEACHER: "the teacher"} | {
        one["student"]: f"student {code(one['student'])}" for one in summary["students"]
    }
    for name, who in whose.items():
        path = out / f"{name}.zip"
        if path.is_file():
            yield Product(path, f"{who}, for `DQN.load` of Stable-Baselines3")


def _scores(summary: Mapping[str, Any]) -> str:
    rows = []
    names = [TEACHER, *(f"student {code(one['student'])}" for one in summary["students"])]
    shares = [None, *(one["teacher_normalized"] for one in summary["students"])]
    for name, share, one in zip(names, shares, summary["generations"], strict=True):
        metrics = one["metrics"]
        ends = format_points_interval(metrics["score_ci95"])
        rows.append([name, format_points(metrics["score_mean"]), ends, format_number(share, 3)])
    return table(["who", "score", "95% over games", "of teacher"], rows)
