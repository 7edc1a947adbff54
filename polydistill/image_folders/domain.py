"""The world of a folder of pictures for a lineage: generation 0 learns from labels, or is given; each teaches the next.

It is a :class:`~polydistill.modules.domain.ModuleDomain` whose modules take pictures; beside each file of weights lies
a card that says what is needed to open and feed it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from polydistill.device import prepare
from polydistill.disk import atomic_write
from polydistill.errors import UserError
from polydistill.image_folders.config import ImagesConfig
from polydistill.image_folders.data import IGNORED, Folders, make_loaders
from polydistill.image_folders.folder import SIZES, list_names
from polydistill.image_folders.library import PREFIX
from polydistill.image_folders.networks import expectations, size_option
from polydistill.image_folders.teacher import make_untrained, open_teacher
from polydistill.image_folders.training import make_optimizer, make_scheduler
from polydistill.learning.processes import ALONE, Processes
from polydistill.learning.taught import tell_accuracy
from polydistill.lineage import Generation
from polydistill.lineage.keeper import Keeper
from polydistill.modules.domain import ModuleDomain
from polydistill.modules.examiner import OtherLabelsError
from polydistill.modules.world import FILE
from polydistill.provenance import weights_sha256
from polydistill.runs.correctness import KeptAnswers

PURPOSES = {"train": "learn from", "validation": "validate on", "test": "be tested on", "whole": "learn from"}


class ImagesDomain(ModuleDomain):
    """Generations of classifiers of the pictures in a folder.

    Args:
        config: resolved, see :meth:`ImagesConfig.resolve`.
        folders: its pictures.
        processes: that share each batch.
        begun: the run folder has generation 0 already: the file of a teacher that was given is not opened.

    Raises:
        UserError: the teacher that is given is not there, or does not fit.
    """

    def __init__(
        self, config: ImagesConfig, folders: Folders, processes: Processes = ALONE, *, begun: bool = False
    ) -> None:
        self.config, self.folders, self.classes = config, folders, folders.train.classes
        self.loaders, self._answers = make_loaders(config, folders), KeptAnswers()
        n_classes, training = len(self.classes), config.training
        device = prepare(config.device, config.threads)
        teacher = None
        if config.teacher.given:
            teacher = make_untrained(config, 0, n_classes) if begun else open_teacher(config, self.classes)
        super().__init__(
            build=lambda: make_untrained(config, 0, n_classes),
            build_student=lambda: make_untrained(config, 1, n_classes),
            batches=self.loaders.train,
            test=self.loaders.test,
            validation=self.loaders.validation,
            teacher=teacher,
            epochs=training.epochs,
            optimizer=lambda parameters: make_optimizer(training, parameters),
            scheduler=lambda optimizer: make_scheduler(training, optimizer, len(self.loaders.train)),
            schedule_by="step",
            objective=config.student.find_objective(),
            options=config.student.options(),
            classes=n_classes,
            seed=config.seed,
            repeat=config.student.repeat,
            ignore_index=IGNORED if config.data.broken == "skip" else None,
            log_every_steps=training.log_every_steps,
            device=device,
            precision=config.precision,
            compile=training.compile,
            parts=training.parts,
            clip_norm=training.clip_norm,
            ema=training.ema,
            keep_best=config.evaluation.selection == "best_val",
            patience=config.evaluation.patience,
            shard=bool(training.shard),
        )
        self.workshop.processes = processes

    def train(self, teacher: nn.Module | None, begun: Mapping[str, Any] | None, keeper: Keeper[nn.Module]) -> nn.Module:
        """As every module; its card is written, too."""
        member = super().train(teacher, begun, keeper)
        sha256 = weights_sha256(member.state_dict())  # in all processes, which may have pieces of it
        if keeper.run is not None:
            self._write_card(sha256, keeper.generation, keeper.run.out)
        return member

    def prepare(self, teacher: nn.Module | None, generation: int) -> nn.Module:
        """As every module. What fails later, as a loss of one's own may, keeps its traceback and says in which batch.

        Raises:
            UserError: something does not fit together.
        """
        try:
            return super().prepare(teacher, generation)
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error

    def evaluate(self, member: nn.Module, teacher: nn.Module | None, keeper: Keeper[nn.Module]) -> dict[str, Any]:
        """As every module; of a teacher that was given one line says how good it is, before its student learns."""
        with self._telling_of_unread():
            metrics = super().evaluate(member, teacher, keeper)
        if keeper.run is not None:
            self._answers.keep(keeper.run.out, self._examiner.correct(keeper.generation))
        if not keeper.generation and self.config.teacher.given and keeper.run is not None:
            print(introduce(self.config, metrics["test_accuracy"], len(self.classes)), file=sys.stderr)
        return metrics

    def state(self, generations: Sequence[Generation[nn.Module]]) -> dict[str, Any]:
        """What the folder, and the files of right and wrong answers, must still be when the run goes on, too."""
        kept = {"data": self.folders.describe(), "correct": self._answers.records, "left_out": self.loaders.left_out()}
        return {**super().state(generations), **kept}

    def read_members(self, saved: Mapping[str, Any], keeper: Keeper[nn.Module]) -> list[nn.Module]:
        """Read from their files, once the pictures are found to be those that the run began with.

        Raises:
            UserError: they, or files of the run, are others.
        """
        require_same_pictures(self.config, self.folders.describe(), saved["data"])
        self.loaders.leave_out(saved.get("left_out", {}))  # a version before did not keep it, nor what is right
        members = super().read_members(saved, keeper)
        if keeper.run is not None and "correct" in saved:
            self._answers.go_on(keeper.run.out, saved["correct"])
        elif keeper.run is not None:
            for generation in range(len(members)):
                with self._telling_of_unread():
                    self._answers.keep(keeper.run.out, self._examiner.correct(generation))
        return members

    def finish(self, keeper: Keeper[nn.Module]) -> dict[str, Any]:
        """What summary.json says of the pictures beside."""
        data = {
            **self.folders.describe(),
            "classes": list(self.classes),
            "left_out": self.folders.left_out + sum(map(len, self.loaders.left_out().values())),
        }
        sizes = {"processes": self.workshop.processes.size, "data": data}
        with self._telling_of_unread():
            found = super().finish(keeper)
        return {**found, "correct": self._answers.records, **sizes}

    @contextlib.contextmanager
    def _telling_of_unread(self) -> Iterator[None]:
        """Test labels are those of the pictures that could be read: other labels are other such pictures."""
        try:
            yield
        except OtherLabelsError as error:
            numbers, folder = self.loaders.left_out()["test"], self.folders.test
            names = [str(folder.path(number)) for number in numbers]
            raise UserError(
                f"not the same test pictures of {folder.root} could be read at each test, so generations cannot be "
                f"compared; left out at some time: {list_names(names) or 'none'}; let all of them be read or none, and "
                "give --out another folder"
            ) from error

    def _write_card(self, sha256: str, generation: int, out: Path) -> None:
        name, side = self.config.network_of(generation)
        wants, (crop, interpolation) = expectations(name), self.config.test_cut
        card = {
            "architecture": name,
            "options": size_option(name, side),
            "classes": list(self.classes),
            "mean": list(wants.mean),
            "std": list(wants.std),
            "image_size": side,
            "crop": crop,
            "interpolation": interpolation,
            "sha256": sha256,
            "generation": generation,
            "objective": self.objective if generation else None,
            "seed": self.config.seed,
        }
        path = (out / FILE.format(generation)).with_suffix(".json")
        atomic_write(path, (json.dumps(card, indent=2, allow_nan=False) + "\n").encode())


def introduce(config: ImagesConfig, accuracy: float, classes: int) -> str:
    """How good a teacher that was given is."""
    who = config.teacher.path or f"timm's {config.teacher.network.removeprefix(PREFIX)}"
    question = "are its classes in the order of the folder's names (--teacher.classes)?"
    return tell_accuracy(who, accuracy, "test pictures", classes, question)


def require_same_pictures(config: ImagesConfig, found: Mapping[str, Any], began: Mapping[str, Any]) -> None:
    """Compare two results of :meth:`Folders.describe`, as far as both know; a version before knew less.

    Raises:
        UserError: files, their sizes or classes are others than those that the run began with.
    """
    for name, purpose in PURPOSES.items():
        now, then = found[name], began.get(name, {})
        other = [key for key in now if key in then and now[key] != then[key]]
        if other:
            how = "the names are the same, the sizes are not" if other == [SIZES] else ""
            how = how or f"{now['images']:,} now, {then['images']:,} then"
            raise UserError(
                f"data.root {config.data.root} holds other files to {purpose} than this run began with: {how}; put "
                "them back, or give --out another folder"
            )
