"""The model card of a lineage of agents in one task, made from its summary.json and the files beside it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polydistill.errors import UserError
from polydistill.hub.card import ModelCard, Product, name_of_teacher
from polydistill.hub.citation import FURLANELLO, RUSU
from polydistill.hub.markup import bullets, code, table
from polydistill.runs import format_interval
from polydistill_agents.files.card import MAX_CARD_BYTES
from polydistill_agents.lineage.card_words import (
    OF_INTERVALS,
    gym_id,
    how_to_open,
    is_atari,
    kind_in_words,
    mean_reward,
    protocol_in_words,
    score_kind_of,
    student_products,
)
from polydistill_agents.lineage.learning_on import PRODUCT
from polydistill_agents.lineage.report import (
    count_games,
    format_points,
    format_points_interval,
    notes_of,
    rows_of,
    told_columns,
)
from polydistill_agents.teachers.zoo import find_teacher

POLICY_DISTILLATION = "[policy distillation](https://arxiv.org/abs/1511.06295)"
TAGS = ("deep-reinforcement-learning", "reinforcement-learning", "policy-distillation", "knowledge-distillation")


def make_card(summary: Mapping[str, Any], out: Path, where: str = "") -> ModelCard:
    """What there is to tell of a run.

    Args:
        summary: of a finished run of one task.
        out: its folder.
        where: the card is to be read, as ``hf://org/name``; empty: in the folder.

    Raises:
        UserError: the student's files are missing or damaged.
    """
    config, last = summary["config"], summary["generations"][-1]
    products = [*_products(summary, out)]
    if not products:
        raise UserError(f"{out} holds no student.zip or student.safetensors")
    student, metrics = products[0].path, last["metrics"]
    env, zipped = code(gym_id(config)), student.suffix == ".zip"
    kind = score_kind_of(student)
    scored = [*protocol_in_words(config, metrics), OF_INTERVALS, _columns(summary)]
    sections = [
        ("Scores", f"{_scores(summary)}\n\n{bullets([*notes_of(summary), *scored])}"),
        ("How to play it", f"{how_to_open(config, student, where)}\n\n{kind_in_words(kind, student.name)}"),
        ("The teacher", _teacher(summary)),
        ("Limits", bullets(_limits(summary))),
    ]
    tags = [gym_id(config), *TAGS, *(["stable-baselines3"] if zipped else []), *(["atari"] if is_atari(config) else [])]
    return ModelCard(
        title=f"A student for {env}",
        opening=_opening(summary, env),
        library="stable-baselines3" if zipped else "polydistill",
        task="reinforcement-learning",
        tags=[*tags, "polydistill"],
        results=[mean_reward(config, metrics)],
        products=products,
        sections=sections,
        teachers_licence=_teachers_licence(summary),
        papers=[RUSU, *([FURLANELLO] if len(summary["generations"]) > 2 else [])],
    )


def _products(summary: Mapping[str, Any], out: Path) -> Iterator[Product]:
    """The student, its ONNX files if there are any, then the students before it."""
    last = summary["generations"][-1]
    yield from student_products(out, "student", "the student")
    for path in sorted(out.glob("*.onnx")):
        card = path.with_name(f"{path.name}.json")
        if _exported_from(card, path) == last["sha256"]:
            yield Product(path, "the student, for onnxruntime")
            yield Product(card, f"how to run {code(path.name)}, and what was measured")
    learned_on = out / PRODUCT
    if learned_on.is_file() and "score_after" in last["metrics"]:
        yield Product(learned_on, "the student after it has learned on from rewards, a DQN")
    for generation in summary["generations"][1:-1]:
        stem = f"generation_{generation['generation']}"
        yield from student_products(out, stem, f"student {generation['generation']}, which taught the next")


def _exported_from(card: Path, path: Path) -> str | None:
    """The hash of the agent that an ONNX file was made from, by its card; None: there is none, or it is of another."""
    with contextlib.suppress(OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        if card.stat().st_size <= MAX_CARD_BYTES:
            told = json.loads(card.read_text(encoding="utf-8"))
            if path.name in [file["name"] for file in told["files"].values()]:
                return str(told["agent"]["sha256"])
    return None


def _opening(summary: Mapping[str, Any], env: str) -> str:
    config, first, last = summary["config"], summary["generations"][0], summary["generations"][-1]
    metrics, teacher = last["metrics"], first["metrics"]
    if config["student"]["objective"] == "td":
        origin = "It is a control: a DQN that learned from rewards alone, beside a teacher that it never asked."
    else:
        where = f", as generation {last['generation']} of a lineage" if last["generation"] > 1 else ""
        origin = (
            f"It was made by {POLICY_DISTILLATION} with polydistill{where}: it learned from the scores that its "
            f"teacher gives to actions (objective {code(last['objective'])}), and not from rewards."
        )
    interval = format_points_interval(metrics["score_ci95"])
    between = f" (95% over games: {interval})" if metrics["score_ci95"] is not None else ""
    share = metrics["teacher_normalized"]
    ends = format_interval(metrics["teacher_normalized_ci95"], 3)
    of_share = "" if ends is None else f" (95% over games: {ends})"
    kept = "" if share is None else f" From random play (0) to the teacher (1) that is {share:.3f}{of_share}."
    size = "" if not first["parameters"] else f" (its teacher has {first['parameters']:,})"
    return (
        f"A network of {last['parameters']:,} parameters{size} that plays {env}. {origin}\n\n"
        f"In {count_games(metrics['episodes'])} it scores {format_points(metrics['score_mean'])}{between}; its teacher "
        f"scores {format_points(teacher['score_mean'])}.{kept}"
    )


def _scores(summary: Mapping[str, Any]) -> str:
    rows = rows_of(summary)
    told = [name for name in told_columns(rows) if name != "seconds"]
    return table(told, [[row.get(name) for name in told] for row in rows])


def _columns(summary: Mapping[str, Any]) -> str:
    human = ", of human from random play (0) to a human player (1)" if is_atari(summary["config"]) else ""
    after = "score_after" in summary["generations"][-1]["metrics"]
    learned_on = "; score after is that of the student once it has learned on from rewards" if after else ""
    return (
        f"Score is points of a full game; of teacher runs from random play (0) to the teacher (1){human}; agreement is "
        f"the share of the states in the games of the row in which the teacher's best action is the same{learned_on}."
    )


def _teacher(summary: Mapping[str, Any]) -> str:
    config, first = summary["config"], summary["generations"][0]
    path, more = config["teacher"]["path"], config["teacher"].get("more", [])
    named = [name_of_teacher(one) for one in [path, *more] if one]
    who = f"{', '.join(named)}." if named else "A data set of its play; its file was not there."
    if not named and _is_shipped(summary):
        who = "The teacher that polydistill ships."
    lines = [who]
    if first["sha256"]:
        lines.append(f"SHA-256 of its weights: {code(first['sha256'])}.")
    if first["parameters"]:
        lines.append(f"{first['parameters']:,} parameters.")
    if first["metrics"].get("dataset_sha256"):
        lines.append(f"Its play came from a file, SHA-256 {code(first['metrics']['dataset_sha256'])}.")
    return bullets(lines)


def _is_shipped(summary: Mapping[str, Any]) -> bool:
    """Whether the teacher is the one that polydistill brings."""
    config, sha256 = summary["config"], summary["generations"][0]["sha256"]
    if not is_atari(config) or sha256 is None:
        return False
    try:
        card = json.loads(find_teacher(config["game"]).with_suffix(".json").read_text(encoding="utf-8"))
    except UserError:
        return False
    return bool(card["sha256"] == sha256)


def _teachers_licence(summary: Mapping[str, Any]) -> str:
    if _is_shipped(summary):
        return "The teacher is part of polydistill, under the MIT licence."
    return "The licence of the teacher is not known here; ask its owner whether students of it may be published."


def _limits(summary: Mapping[str, Any]) -> list[str]:
    config, last = summary["config"], summary["generations"][-1]
    learned = (
        "It is a DQN that learned for a short time."
        if last["objective"] == "td"
        else f"It learned in {config['play']['steps']:,} steps of play; in states far from those it may do anything."
    )
    return [
        f"One run with one seed ({summary['seed']}); others would differ.",
        f"It was trained and scored in {code(gym_id(config))} alone: of other versions, options and observations "
        "nothing is known.",
        learned,
        "Scores compare only with scores under the same protocol.",
    ]
