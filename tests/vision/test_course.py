"""polydistill.lineage.course with images: what a bar shows while a generation learns, validates and is tested."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any, cast

import pytest
from rich.console import Console

from polydistill.errors import Interrupted
from polydistill.learning.training import never
from polydistill.lineage.course import Recorder, TrainingCourse
from polydistill.runs import Run
from polydistill.runs.progress import Progress
from polydistill.vision.config import EvaluationConfig
from polydistill.vision.evaluation import validation_of
from polydistill.vision.examiner import Examiner
from polydistill.vision.images.data import Images, ImageSet, Normalization
from tests.vision.lessons import NORMALIZER, image_set, tiny, trainer


class Watched(Progress):
    """A bar that notes what it was told."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.notes: list[tuple[int, str]] = []

    def advance(self, n: int = 1, **numbers: float | str) -> None:
        assert n >= 0, "a bar never goes back"
        super().advance(n, **numbers)
        self.notes.append((self.done, str(numbers.get("epoch", ""))))

    def say(self, text: str) -> None:
        super().say(text)
        self.notes.append((self.done, text))


class Bars:
    """Stands for a run, of which only the bars are looked at."""

    def __init__(self) -> None:
        self.made: list[Watched] = []

    @contextlib.contextmanager
    def progress(self, description: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Watched]:
        self.made.append(Watched(description, total, unit, done))
        with self.made[-1] as bar:
            yield bar

    def log(self, *arguments: object) -> None:
        """Nothing is kept."""

    log_timing = log


def course(bars: Bars, validation: ImageSet | None = None, **changes: Any) -> TrainingCourse:
    images = image_set(20) if validation is None else validation
    measured = validation_of(images, NORMALIZER, EvaluationConfig())
    return TrainingCourse(trainer(**changes), Recorder(cast(Run, bars), 1, "images"), measured)


def test_the_bar_moves_with_every_step_and_ends_at_100_percent() -> None:
    bars = Bars()
    course(bars).learn(never, lambda: None)
    (bar,) = bars.made
    assert (bar.description, bar.total, bar.unit) == ("generation 1 learns", 140, "images")
    reached = sorted({done for done, _ in bar.notes})
    assert reached == [16, 32, 48, 64, 70, 86, 102, 118, 134, 140], "two epochs of 70 images in batches of 16"
    assert bar.done == bar.total


def test_it_shows_the_epoch_in_progress_and_the_newest_accuracy_and_loss() -> None:
    bars = Bars()
    course(bars).learn(never, lambda: None)
    (bar,) = bars.made
    shown = [note for note in bar.notes if note[1] and "/" in note[1]]
    assert shown == [(48, "1/2"), (70, "1/2"), (118, "2/2"), (140, "2/2")]
    assert " epoch 2/2, accuracy 0." in bar.state()
    assert ", loss " in bar.state()


def test_it_says_what_it_does_while_validation_images_are_measured() -> None:
    bars = Bars()
    course(bars).learn(never, lambda: None)
    words = [note for note in bars.made[0].notes if note[1].startswith("measuring")]
    assert words == [(70, "measuring the validation images"), (140, "measuring the validation images")]
    without = Bars()
    course(without, ImageSet(image_set().images[:0], image_set().labels[:0])).learn(never, lambda: None)
    assert not [note for note in without.made[0].notes if note[1].startswith("measuring")]


def test_a_course_that_goes_on_begins_where_it_was() -> None:
    first, second = Bars(), Bars()
    way, states = course(first), []

    def leave() -> None:
        states.append(way.state())
        raise Interrupted(15, "stopped")

    with pytest.raises(Interrupted):
        way.learn(lambda steps: steps == 4, leave)
    assert first.made[0].done == 64
    again = course(second)
    again.load_state(states[0])
    again.learn(never, lambda: None)
    assert second.made[0].notes[0][0] == 70
    assert (second.made[0].done, second.made[0].total) == (140, 140)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_epoch_accuracy_and_loss_are_seen_on_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = Progress("generation 12 learns", 9_000_000, "images")
    bar.advance(4_500_000, epoch="100/200", accuracy=0.98765, loss=0.012345)
    console = Console(file=io.StringIO(), width=columns, force_terminal=True)
    console.print(bar._line(columns))
    text = cast(io.StringIO, console.file).getvalue()
    assert "epoch 100/200, accuracy 0.9876, loss 0.01234" in text or "accuracy 0.9877, loss 0.01235" in text
    assert text.count("\n") == 1


def test_the_examiner_tells_of_every_image_that_it_has_seen() -> None:
    data = image_set(1_200)
    parts = Images(data, image_set(20), data, Normalization((0.5,) * 3, (0.25,) * 3), 5)  # type: ignore[arg-type]
    examiner = Examiner(parts, NORMALIZER, EvaluationConfig())
    seen: list[int] = []
    examiner.look(tiny(), seen.append)
    assert seen == [500, 500, 200, 20]
    assert examiner.images_to_see == sum(seen)
