"""The model card of a student of several tasks, made from its summary.json and the files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polydistill.errors import UserError
from polydistill.hub.card import ModelCard, Product, name_of_teacher
from polydistill.hub.citation import RUSU
from polydistill.hub.markup import bullets, code, table
from polydistill_agents.environments.gym_config import EnvironmentConfig
from polydistill_agents.lineage.card_words import (
    OF_INTERVALS,
    gym_id,
    how_to_open,
    kind_in_words,
    mean_reward,
    protocol_in_words,
    score_kind_of,
    student_products,
)
from polydistill_agents.lineage.model_card import POLICY_DISTILLATION, TAGS
from polydistill_agents.lineage.multitask.report import HEADERS, notes_of, rows_of
from polydistill_agents.lineage.multitask.view import TASKS


def make_card(summary: Mapping[str, Any], out: Path, where: str = "") -> ModelCard:
    """See :func:`polydistill_agents.lineage.model_card.make_card`.

    Raises:
        UserError: the student's files are missing or damaged.
    """
    last = summary["generations"][-1]
    tasks = {name: config_of(summary, name) for name in last["metrics"][TASKS]}
    products = [*_products(summary, out)]
    if not products:
        raise UserError(f"{out} holds no generation_{last['generation']}.safetensors or zips of its tasks")
    zipped = products[0].path.suffix == ".zip"
    results = [mean_reward(config, last["metrics"][TASKS][name]) for name, config in tasks.items()]
    names = ", ".join(f"{code(name)} ({code(gym_id(config))})" for name, config in tasks.items())
    sections = [("Scores", _scores(summary, tasks)), ("How to play it", _opened(tasks, products, where, zipped))]
    sections += [("The teachers", _teachers(summary, tasks)), ("Limits", bullets(_limits(summary)))]
    return ModelCard(
        title=f"One student for {len(tasks)} tasks",
        opening=(
            f"One network of {last['parameters']:,} parameters that plays {names}: shared layers, and a head for "
            f"each task. It was made by {POLICY_DISTILLATION} with polydistill: it learned from the scores that a "
            f"teacher of each task gives to actions (objective {code(last['objective'])}), and not from rewards."
        ),
        library="stable-baselines3" if zipped else "polydistill",
        task="reinforcement-learning",
        tags=[
            *map(gym_id, tasks.values()),
            *TAGS,
            "multi-task",
            *(["stable-baselines3"] if zipped else []),
            "polydistill",
        ],
        results=results,
        products=products,
        sections=sections,
        teachers_licence="The licences of the teachers are not known here; ask their owners.",
        papers=[RUSU],
    )


def config_of(summary: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The part of a run's config that is one task's, in the form of a run of it alone."""
    config = summary["config"]
    shared = {key: config[key] for key in ("play", "evaluation", "student")}
    if "games" in config:
        return {"game": name, **shared}
    defaults = vars(EnvironmentConfig())
    given = config[TASKS][name]
    return {**defaults, **{key: given[key] for key in defaults if key in given}, **shared}


def _products(summary: Mapping[str, Any], out: Path) -> Iterator[Product]:
    """The last student's files: of each task a zip, then that of all."""
    generation = summary["generations"][-1]["generation"]
    for name in summary["generations"][-1]["metrics"][TASKS]:
        yield from student_products(out, f"generation_{generation}_{name}", f"the student in {code(name)}")
    whole = out / f"generation_{generation}.safetensors"
    if whole.is_file():
        yield Product(whole, "the whole student: shared layers, and a head for each task")


def _scores(summary: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> str:
    students = len(summary["generations"]) - 1
    told = [name for name in HEADERS if name != "student" or students > 1]
    rows = [[code(row[name]) if name == "task" else row[name] for name in told] for row in rows_of(summary)]
    words = [*notes_of(summary)]
    for name, config in tasks.items():
        metrics = summary["generations"][-1]["metrics"][TASKS][name]
        words += [f"{code(name)}: {line}" for line in protocol_in_words(config, metrics)]
    words.append(
        "Score is points of a full game; of teacher runs from random play (0) to the teacher (1); agreement is the "
        "share of the states in the student's games in which its teacher's best action is the same."
    )
    return f"{table(told, rows)}\n\n{bullets([*words, OF_INTERVALS])}"


def _opened(tasks: Mapping[str, Mapping[str, Any]], products: list[Product], where: str, zipped: bool) -> str:
    if not zipped:
        named = where or str(products[0].path.name)
        return f"The student is too wide for the classes of Stable-Baselines3; polydistill holds it: {code(named)}."
    name, config = next(iter(tasks.items()))
    file = products[0].path
    said = f"Each task has its zip. This opens that of {code(name)}:"
    return f"{said}\n\n{how_to_open(config, file, where)}\n\n{kind_in_words(score_kind_of(file), file.name)}"


def _teachers(summary: Mapping[str, Any], tasks: Mapping[str, Any]) -> str:
    first, config = summary["generations"][0]["metrics"][TASKS], summary["config"]
    lines = []
    for name in tasks:
        path = str(config["games"][name] if "games" in config else config[TASKS][name]["teacher"])
        sha256 = first[name].get("sha256")
        known = f", SHA-256 of its weights {code(sha256)}" if sha256 else ""
        lines.append(f"{code(name)}: {name_of_teacher(path) if path else 'the one that polydistill ships'}{known}")
    return bullets(lines)


def _limits(summary: Mapping[str, Any]) -> list[str]:
    return [
        f"One run with one seed ({summary['seed']}); others would differ.",
        "It was trained and scored in these tasks alone, and must be told which of them it plays.",
        "Scores compare only with scores under the same protocol.",
    ]
