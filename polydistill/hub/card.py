"""A model card in the form of the Hugging Face Hub: metadata as YAML, then Markdown.

The metadata are those of the Hub's specification of model cards; its ``model-index`` is what leaderboards read. What a
world knows of its runs it gives as a :class:`ModelCard`. Contract: words of others are escaped by
:mod:`~polydistill.hub.markup` where they are put in, and YAML quotes them; the library of the Hub is not needed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from polydistill.config.plain_yaml import dump_yaml
from polydistill.disk import disk_errors
from polydistill.errors import UserError
from polydistill.hub.citation import software
from polydistill.hub.markup import block, bullets, code, one_line, table
from polydistill.hub.places import name_only, public_command

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
NOT_STATED = (
    "The licence of these weights is not stated. Ask whoever published them before you use them; the licence of "
    "polydistill covers its code, not what is trained with it."
)


class NothingTrainedError(UserError):
    """A run that has trained no network of its own, as one that only scored a teacher: it has no card."""


class Result(NamedTuple):
    """A number for the model index.

    Attributes:
        dataset: what was played or seen, by its usual name.
        dataset_name: the same for people, with whatever makes it another than the usual one.
        metric: the Hub's name of it, as ``mean_reward`` or ``accuracy``.
        value: a number, or a text as ``15.74 +/- 1.20``.
    """

    dataset: str
    dataset_name: str
    metric: str
    value: str | float


class Product(NamedTuple):
    """A file of a run that is worth sharing.

    Attributes:
        path: of the file.
        what: is in it, in Markdown.
    """

    path: Path
    what: str


class ModelCard(NamedTuple):
    """What a world tells of a run.

    Attributes:
        title: in Markdown, as all texts here.
        opening: the first sentences.
        library: that opens the files, as the Hub names it.
        task: the Hub's name of it, as ``reinforcement-learning``.
        tags: for the Hub's search.
        results: for the model index; none: nothing that others could compare was measured.
        products: the files, the most important first.
        sections: title and text of each, in their order.
        teachers_licence: a sentence.
        papers: in BibTeX.
    """

    title: str
    opening: str
    library: str
    task: str
    tags: Sequence[str]
    results: Sequence[Result]
    products: Sequence[Product]
    sections: Sequence[tuple[str, str]]
    teachers_licence: str
    papers: Sequence[str]


def format_card(card: ModelCard, summary: Mapping[str, Any], license_id: str = "") -> str:
    """The text of README.md.

    Args:
        card: of the run.
        summary: its summary.json: command, seed, versions, commit.
        license_id: of the weights, as their owner states it; empty: nobody has.

    Raises:
        UserError: a product cannot be read.
    """
    stated = f"These weights are published under `{license_id}`." if license_id else NOT_STATED
    sections = [
        *card.sections,
        ("Files", _files(card.products)),
        ("How it was made", _made(summary)),
        ("Licence", f"{stated} {card.teachers_licence}"),
        ("Citation", block("\n\n".join([software(), *card.papers]), "bibtex")),
    ]
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections)
    return (
        f"---\n{dump_yaml(metadata(card, license_id), width=10_000)}---\n\n# {card.title}\n\n{card.opening}\n\n{text}\n"
    )


def metadata(card: ModelCard, license_id: str = "") -> dict[str, Any]:
    """What stands before the text."""
    found: dict[str, Any] = {"license": license_id} if license_id else {}
    found |= {"library_name": card.library, "pipeline_tag": card.task}
    found["tags"] = list(dict.fromkeys(map(one_line, card.tags)))
    if card.results:
        found["model-index"] = [
            {"name": "polydistill student", "results": [_result(card, one) for one in card.results]}
        ]
    return found


def check_license(license_id: str) -> None:
    """Refuse what is no identifier of a licence.

    Raises:
        UserError: it is none.
    """
    if license_id and not LICENSE.fullmatch(license_id):
        raise UserError(
            f"--license {one_line(license_id)!r} is no identifier of the Hub's list, which are like mit, apache-2.0 "
            "and cc-by-4.0"
        )


def _result(card: ModelCard, one: Result) -> dict[str, Any]:
    metric = {"type": one.metric, "name": one.metric, "value": one.value, "verified": False}
    return {
        "task": {"type": card.task, "name": card.task},
        "dataset": {"type": one_line(one.dataset), "name": one_line(one.dataset_name)},
        "metrics": [metric],
    }


def _files(products: Sequence[Product]) -> str:
    rows = []
    for product in products:
        with disk_errors(product.path, "read"):
            content = product.path.read_bytes()
        rows.append(
            [code(product.path.name), product.what, f"{len(content):,}", code(hashlib.sha256(content).hexdigest())]
        )
    return table(["file", "what is in it", "bytes", "sha256 of the file"], rows)


def _made(summary: Mapping[str, Any]) -> str:
    """The command, what it ran on, and the hashes of the weights."""
    git, hardware = summary.get("git"), summary.get("hardware") or {}
    commit = "" if git is None else f", commit {code(git['commit'])}{' with changes' if git['dirty'] else ''}"
    versions = ", ".join(f"{one_line(name)} {one_line(version)}" for name, version in summary["versions"].items())
    machine = hardware.get("gpu") or hardware.get("cpu") or "unknown"
    lines = [f"Seed {summary['seed']}{commit}.", f"Versions: {code(versions)}."]
    if summary["wall_seconds"] is not None:
        lines.append(f"It took {summary['wall_seconds']:,.0f} seconds, evaluation included, on {code(machine)}.")
    weights = [[_who(one), code(one["sha256"] or "")] for one in summary["generations"]]
    told = "SHA-256 over the names, types, shapes and bytes of the weights, in whatever file they lie:"
    return "\n\n".join(
        [
            "Files are named without their folders:",
            block(public_command(summary["command"]), "sh"),
            bullets(lines),
            told,
            table(["who", "sha256 of the weights"], weights),
        ]
    )


def _who(generation: Mapping[str, Any]) -> str:
    """Whose weights these are: of a training by their name, of a lineage by their number."""
    return code(generation["name"]) if "name" in generation else f"generation {generation['generation']}"


def trained_networks(summary: Mapping[str, Any], out: Path, given: bool, beside: str = "") -> Iterator[Product]:
    """The networks that a lineage of classifiers has trained, the last first.

    Args:
        summary: of the run.
        out: its folder.
        given: generation 0 is somebody else's.
        beside: what the JSON beside each file says, without which it does not count; empty: there is none.
    """
    for one in reversed(summary["generations"]):
        number = one["generation"]
        path = out / f"generation_{number}.safetensors"
        if (number or not given) and path.is_file() and (not beside or path.with_suffix(".json").is_file()):
            yield Product(path, f"generation {number}: the weights")
            if beside:
                yield Product(path.with_suffix(".json"), f"generation {number}: {beside}")


def name_of_teacher(path: str) -> str:
    """The name of a teacher's file as code."""
    return code(name_only(path))
