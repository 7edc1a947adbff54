"""polydistill.vision.update and training: one step by hand, and lessons that can be stopped, repeated and trusted."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polydistill import device
from polydistill.errors import UserError
from polydistill.learning.lesson import Lesson, check_options
from polydistill.learning.schedules import TrainingConfig, schedule_rate
from polydistill.learning.update import Update, make_optimizer
from polydistill.vision.images.augmentation import draw_plan, take_batch
from polydistill.vision.images.data import ImageSet
from tests.curves_and_tables import explained
from tests.vision.lessons import NORMALIZER, SHORT, image_set, same, tiny, trainer, weights

# ---- the schedule ------------------------------------------------------------------------------------------------


def test_the_papers_rate_falls_at_epochs_60_120_and_160() -> None:
    config = TrainingConfig()
    steps = 391  # of an epoch
    rates = [schedule_rate(config, step / (200 * steps)) for step in range(0, 200 * steps, 17)]
    assert sorted({round(rate, 7) for rate in rates}) == [0.0008, 0.004, 0.02, 0.1]
    for epoch, before, after in ((60, 0.1, 0.02), (120, 0.02, 0.004), (160, 0.004, 0.0008)):
        assert schedule_rate(config, (epoch * steps - 1) / (200 * steps)) == pytest.approx(before)
        assert schedule_rate(config, epoch * steps / (200 * steps)) == pytest.approx(after)


def test_cosine_and_one_cycle_pass_through_their_known_points() -> None:
    cosine = TrainingConfig(schedule="cosine", learning_rate=2.0)
    assert [schedule_rate(cosine, p) for p in (0, 1 / 3, 0.5, 2 / 3)] == pytest.approx([2.0, 1.5, 1.0, 0.5])
    cycle = TrainingConfig(schedule="one_cycle", learning_rate=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer := torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0, 0.9),
        1.0,
        total_steps=1001,
        final_div_factor=1e9,
    )
    for step in range(1000):
        assert schedule_rate(cycle, step / 1000) == pytest.approx(optimizer.param_groups[0]["lr"], abs=5e-3)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"milestones": (60.0,)},
        {"decay": 0.0},
        {"log_every_steps": 0},
    ],
)
def test_a_schedule_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingConfig(**wrong)


# ---- one step ----------------------------------------------------------------------------------------------------


def test_a_step_of_a_linear_student_is_the_one_worked_out_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, t = (torch.randn(shape, generator=generator) for shape in ((6, 4), (3, 4), (3, 4)))
    student, teacher = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        student.weight.copy_(w)
        teacher.weight.copy_(t)
    config = TrainingConfig(learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    update = Update(student, Lesson("ban", teacher), make_optimizer(student, config, config.learning_rate))
    buffer = torch.zeros_like(w)
    for _ in range(2):
        update(x, torch.zeros(6, dtype=torch.int64), 6)
        # gradient of mean cross-entropy: (q - p) x / batch; decay; Nesterov: buffer = m buffer + g, step = g + m buffer
        gradient = ((x @ w.T).softmax(1) - (x @ t.T).softmax(1)).T @ x / 6 + 0.01 * w
        buffer = 0.9 * buffer + gradient
        w = w - 0.1 * (gradient + 0.9 * buffer)
        assert torch.allclose(student.weight, w, atol=1e-6)


def test_the_teacher_labels_in_evaluation_mode_and_stays_bit_for_bit() -> None:
    teacher = tiny(seed=9).train()
    before = weights(teacher)
    lesson = Lesson("ban", teacher)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    for _ in trainer(lesson).run():
        pass
    assert same(before, weights(teacher))
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_teacher_scores_are_made_by_running_statistics_not_by_those_of_the_batch() -> None:
    teacher = tiny(seed=9)
    student = tiny()
    update = Update(student, Lesson("ban", teacher), torch.optim.SGD(student.parameters(), 0.1))
    images = NORMALIZER(image_set().images)
    alone = update.teacher_scores(images[:1])
    together = update.teacher_scores(images)
    assert alone is not None
    assert together is not None
    assert torch.allclose(alone, together[:1], atol=1e-5)


def test_a_batch_twice_over_has_the_same_gradient() -> None:
    images, labels = NORMALIZER(image_set().images), image_set().labels
    after = []
    for times in (1, 3):
        student = tiny()
        update = Update(student, Lesson("ban_l", tiny(seed=9)), torch.optim.SGD(student.parameters(), 0.1))
        update(images.repeat(times, 1, 1, 1), labels.repeat(times), times * len(labels))
        after.append(torch.cat([parameter.detach().reshape(-1) for parameter in student.parameters()]))
    assert torch.allclose(after[0], after[1], atol=1e-6)


def test_under_bfloat16_scores_and_loss_are_float32_and_near_those_of_float32() -> None:
    images, labels = NORMALIZER(image_set().images), image_set().labels
    results = []
    for precision in ("float32", "bfloat16"):
        student = tiny()
        update = Update(
            student, Lesson("ban", tiny(seed=9)), torch.optim.SGD(student.parameters(), 0.1), precision=precision
        )
        results.append(update(images, labels, len(labels)))
    for exact, rough in zip(*results, strict=True):
        assert exact is not None
        assert rough is not None
        assert rough.dtype == torch.float32
        assert torch.allclose(exact, rough, atol=0.05)
    assert not torch.equal(results[0][0], results[1][0]), "bfloat16 was not used"


def test_a_teacher_on_another_device_than_the_student_is_refused() -> None:
    student = tiny()
    with pytest.raises(ValueError, match="the student is on cpu, its teacher on meta: they must be on the same device"):
        Update(student, Lesson("ban", tiny(seed=9).to("meta")), torch.optim.SGD(student.parameters(), 0.1))


def test_parameters_without_elements_are_not_shared() -> None:
    class Odd(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.nothing = nn.Parameter(torch.empty(0))

    student, teacher = Odd(), Odd()
    assert student.nothing.data_ptr() == teacher.nothing.data_ptr(), "the case that this test is about"
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    Update(student, Lesson("ban", teacher), optimizer)
    teacher.weight = student.weight
    with pytest.raises(RuntimeError, match="shares weights"):
        Update(student, Lesson("ban", teacher), optimizer)


def test_without_a_compiler_the_process_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    device._say_once.cache_clear()
    for _ in range(2):  # two generations of two networks
        for report in trainer(config=dataclasses.replace(SHORT, epochs=1, compile=True)).run():
            assert report.values["train/loss"] > 0
    assert capsys.readouterr().err.count("torch.compile needs a C++ compiler") == 1


# ---- the lesson --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "options"),
    [("ban", {"temperature": 2.0}), ("cross_entropy", {"teacher_weight": 1.0}), ("cwtm", {"group": None})],
)
def test_an_option_that_the_objective_does_not_take_is_refused(objective: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"objective {objective} has no option {next(iter(options))}"):
        check_options(objective, options)


def test_an_objective_without_the_teacher_that_it_needs_is_refused() -> None:
    with pytest.raises(ValueError, match="ban needs a teacher"):
        Lesson("ban")


def test_fresh_permutations_change_with_the_step_and_fixed_ones_belong_to_the_image() -> None:
    def draw(kind: str, ids: list[int], step: int, generation: int = 1) -> Tensor:
        lesson = Lesson("dkpp", tiny(), generation=generation, classes=40, options={"permutation": kind})
        found = lesson.draw_permutation(torch.tensor(ids), step)
        assert found is not None
        return found

    assert torch.equal(draw("fresh", [3, 4], 7), draw("fresh", [3, 4], 7))
    assert not torch.equal(draw("fresh", [3, 4], 7), draw("fresh", [3, 4], 8))
    assert not torch.equal(draw("fresh", [3, 4], 7), draw("fresh", [3, 4], 7, generation=2))
    assert torch.equal(draw("fresh", [3, 4], 7), draw("fresh", [4, 3], 7).flip(0)), "whatever the order"
    assert not torch.equal(*draw("fresh", [3, 4], 7))
    assert torch.equal(draw("fixed", [3, 4], 7), draw("fixed", [4, 3], 8).flip(0))
    assert not torch.equal(*draw("fixed", [3, 4], 7))
    assert not torch.equal(draw("fixed", [3], 7), draw("fixed", [3], 7, generation=2))


def test_shares_of_the_gradient_are_logged_and_the_weights_for_cwtm(root: Path) -> None:
    for objective in ("ban", "cwtm"):
        reports = list(trainer(Lesson(objective, tiny(seed=9), generation=1)).run())
        for report in reports:
            values = report.values
            assert 0 < values["distill/label_share"] < 1
            assert "distill/dark_knowledge_share" not in values, "it is 1 minus the label's share: one chart is enough"
            assert 0 <= values["train/agreement"] <= 1
            assert ("distill/largest_weight" in values) is (objective == "cwtm")
    assert 1 < reports[-1].values["distill/largest_weight"] < 5
    assert 0 < reports[-1].values["distill/effective_share"] < 1
    assert reports[-1].values.keys() <= explained(root, "Curves of distill_cifar.py")


@pytest.mark.parametrize("objective", ["ban", "cwtm"])
def test_the_logged_shares_and_weights_are_those_of_the_networks_at_that_step(objective: str) -> None:
    config = TrainingConfig(epochs=1, batch_size=16, learning_rate=0.05, log_every_steps=1)
    teacher = tiny(seed=9)
    report = next(trainer(Lesson(objective, teacher, generation=1), config).run())
    pixels, labels = take_batch(image_set(), draw_plan(70, 0, 1, 0)[:16])
    with torch.no_grad():
        q, p = (network(NORMALIZER(pixels)).double().softmax(1).numpy() for network in (tiny().train(), teacher))
    shares = []
    for own, taught, label in zip(q, p, labels.tolist(), strict=True):
        one_hot = np.eye(5)[label]
        others = taught * (1 - one_hot) / (1 - taught[label])
        of_label = taught[label] * np.linalg.norm(own - one_hot)
        shares.append(of_label / (of_label + (1 - taught[label]) * np.linalg.norm(own - others)))
    assert report.values["distill/label_share"] == pytest.approx(np.mean(shares), rel=1e-4)
    if objective == "cwtm":
        relative = p.max(1) / p.max(1).mean()
        assert report.values["distill/largest_weight"] == pytest.approx(relative.max(), rel=1e-5)
        effective = relative.sum() ** 2 / (16 * (relative**2).sum())
        assert report.values["distill/effective_share"] == pytest.approx(effective, rel=1e-5)


def test_labels_alone_log_no_distillation() -> None:
    report = next(trainer(Lesson("cross_entropy")).run())
    assert set(report.values) == {"train/loss", "train/accuracy", "train/learning_rate"}


# ---- the loop ----------------------------------------------------------------------------------------------------


def test_an_epoch_is_all_images_the_last_batch_smaller_and_reports_follow() -> None:
    seen: list[int] = []
    one = trainer()
    original = one._make_step

    def count(diagnose: bool, batch: Tensor, permutation: Tensor | None = None) -> None:
        seen.extend(batch[:, 0].tolist())
        original(diagnose, batch, permutation)

    one._make_step = count  # type: ignore[method-assign]
    reports = list(one.run())
    assert sorted(seen[:70]) == sorted(seen[70:]) == list(range(70))
    assert [report.steps for report in reports] == [3, 5, 8, 10]  # 5 steps: 16, 16, 16, 16, 6 images
    assert [report.samples for report in reports] == [48, 70, 118, 140]
    assert [report.epoch_ends for report in reports] == [False, True, False, True]
    assert [report.epochs for report in reports] == [0, 1, 1, 2]


def test_a_lesson_depends_on_its_seed_alone() -> None:
    results = []
    for seed in (0, 0, 1):
        one = trainer(seed=seed)
        torch.manual_seed(len(results))  # whatever others do with the global generator
        results.append((list(one.run()), weights(one.student)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])
    assert not same(results[0][1], results[2][1])


@pytest.mark.parametrize("objective", ["ban", "dkpp"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_lesson_stopped_anywhere_goes_on_bit_for_bit(stop: int, objective: str) -> None:
    def lesson() -> Lesson:
        return Lesson(objective, tiny(seed=9), generation=1, classes=5)

    unbroken = trainer(lesson())
    reports = list(unbroken.run())
    first = trainer(lesson())
    before = list(itertools.islice(first.run(), stop))
    state = copy.deepcopy(first.state())
    second = trainer(lesson())
    second.load_state(state)
    assert before + list(second.run()) == reports
    assert same(weights(unbroken.student), weights(second.student))


def test_the_state_is_a_copy() -> None:
    one = trainer()
    steps = one.run()
    next(steps)
    state = one.state()
    saved = copy.deepcopy(state)
    next(steps)
    assert same(state["student"], saved["student"])
    assert all(torch.equal(a, b) for a, b in zip(state["momentum"], saved["momentum"], strict=True))


def test_the_student_is_in_training_mode_after_validation() -> None:
    one = trainer()
    for _ in one.run():
        one.student.eval()  # a validation that forgets to put it back
        statistics = one.student.state_dict()["1.num_batches_tracked"].clone()
    assert one.steps == 10
    assert statistics == 10, "every step updated batch norm"


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match=r"training\.batch_size is 128, but there are 70 training images"):
        trainer(config=TrainingConfig())


@pytest.mark.parametrize("bad_step", [1, 5, 8])
def test_a_loss_that_is_not_finite_stops_with_its_step_in_the_state_before_it(bad_step: int) -> None:
    class Failing(Lesson):
        calls = 0

        def __call__(self, *arguments: Any) -> Tensor:
            self.calls += 1
            losses = super().__call__(*arguments)
            return losses * math.nan if self.calls == bad_step else losses

    good = trainer()
    reached = {0: weights(good.student)}
    while good.steps < good.total_steps:
        for _ in good.run(lambda steps: True):
            pass
        reached[good.steps] = weights(good.student)
    one = trainer(Failing("ban", tiny(seed=9), generation=1))
    with pytest.raises(FloatingPointError, match=rf"loss ban of generation 1 is nan at step {bad_step} of 10"):
        list(one.run())
    assert one.steps == bad_step - 1
    assert same(reached[bad_step - 1], weights(one.student))


def final_accuracy(data: ImageSet, labels: Tensor) -> float:
    """Accuracy on ``labels`` after a lesson on ``data``."""
    config = TrainingConfig(epochs=20, batch_size=16, learning_rate=0.05, schedule="cosine", weight_decay=0.0)
    one = trainer(Lesson("cross_entropy"), config, data=data)
    assert list(one.run())[-1].epochs == 20
    one.student.eval()
    with torch.no_grad():
        return (one.student(NORMALIZER(data.images)).argmax(1) == labels).float().mean().item()


def test_it_learns_what_shuffled_labels_do_not_teach() -> None:
    data = image_set(100)
    learned = final_accuracy(data, data.labels)
    shuffled = [
        ImageSet(data.images, data.labels[torch.randperm(100, generator=torch.Generator().manual_seed(seed))])
        for seed in range(5)
    ]
    chance = [final_accuracy(wrong, data.labels) for wrong in shuffled]
    assert learned > 0.8
    assert learned > max(chance) + 0.2


def test_a_student_follows_its_teacher_without_labels() -> None:
    teacher = tiny(seed=9)
    config = TrainingConfig(epochs=20, batch_size=16, learning_rate=0.05, weight_decay=0.0, log_every_steps=100)
    one = trainer(Lesson("ban", teacher, generation=1), config)
    reports = list(one.run())
    assert reports[-1].values["train/agreement"] > reports[0].values["train/agreement"] + 0.2
    assert reports[-1].values["train/agreement"] > 0.6
