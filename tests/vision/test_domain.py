"""polydistill.vision.domain: generations of classifiers from made-up images in the official format to summary.json."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import re
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.special import rel_entr
from torch import Tensor, nn

from polydistill.errors import UserError
from polydistill.learning import update
from polydistill.learning.lesson import Lesson
from polydistill.learning.measures import calibration_error, measure
from polydistill.learning.processes import Processes
from polydistill.learning.schedules import TrainingConfig
from polydistill.learning.training import never
from polydistill.lineage import Lineage, LineageConfig, run_lineage
from polydistill.lineage.course import Recorder, TrainingCourse
from polydistill.lineage.keeper import Keeper
from polydistill.provenance import weights_sha256
from polydistill.runs import Run
from polydistill.runs.correctness import read_correct
from polydistill.runs.run import PARTIAL
from polydistill.streams import derive_seed
from polydistill.vision import classifier, domain, evaluation, examiner, training, workshop
from polydistill.vision.classifier import load_classifier
from polydistill.vision.config import CifarConfig, EvaluationConfig, StudentConfig, TeacherConfig
from polydistill.vision.domain import CifarDomain
from polydistill.vision.evaluation import predict, validation_of
from polydistill.vision.images.augmentation import draw_plan
from polydistill.vision.images.data import DataConfig, ImageSet, load_images
from polydistill.vision.networks import build_network
from polydistill.vision.paper import PAPER, paper_error
from polydistill.vision.plan import PRODUCTS
from polydistill.vision.report import format_summary
from polydistill.vision.sources import require_same_teacher
from polydistill.vision.workshop import Workshop


@pytest.fixture
def config(made_up_cifar10: Path) -> CifarConfig:
    return CifarConfig(
        device="cpu",
        threads=1,
        precision="float32",
        data=DataConfig("cifar10", str(made_up_cifar10), official=False, validation_images=40),
        teacher=TeacherConfig("resnet-8"),
        training=TrainingConfig(epochs=1, batch_size=40, learning_rate=0.05, schedule="cosine", log_every_steps=2),
        lineage=LineageConfig(1),
    )


def keeper_of(config: CifarConfig, run: Run | None = None) -> Keeper[nn.Module]:
    return Keeper(CifarDomain(config, load_images(config.data)), config, run)


def run_all(config: CifarConfig, out: Path) -> dict[str, Any]:
    with Run.open(out, config, kind="cifar", command="test") as run:
        return run_lineage(CifarDomain(config, load_images(config.data)), config, run)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def values(out: Path, role: str, tag: str) -> list[float]:
    return [
        line["values"][tag] for line in lines(out / "metrics.jsonl") if line["role"] == role and tag in line["values"]
    ]


# ---- the lineage -------------------------------------------------------------------------------------------------


def test_each_generation_is_a_network_of_its_own_taught_by_the_one_before(config: CifarConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, lineage=LineageConfig(2))
    summary = run_all(config, tmp_path)
    generations = summary["generations"]
    hashes = [generation["sha256"] for generation in generations]
    assert len(set(hashes)) == 3
    assert [generation["teacher_sha256"] for generation in generations] == [None, *hashes[:2]]
    assert [generation["objective"] for generation in generations] == [None, "ban", "ban"]
    assert {generation["parameters"] for generation in generations} == {75_290}
    makes = Workshop(config, load_images(config.data))
    fresh = [makes.make_student("resnet-8", generation).state_dict()["stem.weight"] for generation in range(3)]
    assert not torch.equal(fresh[0], fresh[1])
    assert not torch.equal(fresh[1], fresh[2])
    assert [ensemble["members"] for ensemble in summary["ensembles"]] == [[1, 2]]


def test_a_run_of_generation_0_alone_ends_with_its_table_and_may_get_students_later(
    config: CifarConfig, tmp_path: Path
) -> None:
    alone = dataclasses.replace(config, lineage=LineageConfig(0))
    summary = run_all(alone, tmp_path / "run")
    assert [generation["generation"] for generation in summary["generations"]] == [0]
    assert summary["ensembles"] == []
    text = format_summary(summary)
    assert "a resnet-8 without students" in " ".join(text.split())
    assert text.count("| generation ") == 1
    with Run.open(tmp_path / "run", config, kind="cifar", command="", may_grow=("lineage.generations",)) as run:
        grown = run_lineage(CifarDomain(config, load_images(config.data)), config, run)
    whole = run_all(config, tmp_path / "whole")
    assert [one["sha256"] for one in grown["generations"]] == [one["sha256"] for one in whole["generations"]]


def test_a_student_of_another_number_has_other_weights_order_augmentation_and_permutation(config: CifarConfig) -> None:
    images = load_images(config.data)
    seen: list[set[Any]] = [set() for _ in range(5)]
    for repeat in (0, 1, 2):
        student = StudentConfig(objective="dkpp", repeat=repeat)
        makes = Workshop(dataclasses.replace(config, student=student), images)
        teacher = makes.make_student("resnet-8", 0)
        lesson = makes.make_lesson(teacher, 1)
        one = makes.make_trainer(makes.make_student("resnet-8", 1), lesson, 1)
        plan = draw_plan(160, one.seed, 1, 0)
        permutation = lesson.draw_permutation(torch.arange(8), 0)
        assert permutation is not None
        found = (weights_sha256(teacher.state_dict()), weights_sha256(one.student.state_dict()))
        for one_seen, value in zip(seen, (*found, plan[:, 0], plan[:, 1:], permutation), strict=True):
            one_seen.add(value if isinstance(value, str) else str(value.tolist()))
    assert [len(values) for values in seen] == [1, 3, 3, 3, 3], "the teacher is the same, all of the student differs"


def test_student_0_has_the_streams_of_runs_that_had_no_number(config: CifarConfig) -> None:
    makes = Workshop(
        dataclasses.replace(config, seed=3, student=StudentConfig(objective="dkpp")), load_images(config.data)
    )
    lesson = makes.make_lesson(makes.make_student("resnet-8", 0), 1)
    trainer = makes.make_trainer(makes.make_student("resnet-8", 1), lesson, 1)
    permutation = lesson.draw_permutation(torch.arange(2), 0)
    assert permutation is not None
    # written by the version before there was a number
    assert (trainer.seed, derive_seed(trainer.seed, "initial weights", 1)) == (3, 4218993009622696889)
    assert draw_plan(160, trainer.seed, 1, 0)[:3].tolist() == [[115, 1, 5, 6], [156, 1, 3, 8], [88, 1, 0, 7]]
    assert permutation.tolist() == [[7, 8, 1, 5, 3, 0, 6, 2, 4], [2, 4, 3, 8, 7, 6, 1, 5, 0]]
    stem = trainer.student.state_dict()["stem.weight"].flatten()[:3]
    assert stem.tolist() == pytest.approx([0.09692510, -0.09930861, -0.11758433], rel=1e-5)


def test_the_number_of_the_student_belongs_to_the_run(config: CifarConfig, tmp_path: Path) -> None:
    run_all(config, tmp_path)
    again = dataclasses.replace(config, student=StudentConfig(repeat=1))
    with pytest.raises(UserError, match=r"student\.repeat is 0 there and 1 here"):
        run_all(again, tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("  repeat: 0\n", ""))  # of a version that had no number
    assert run_all(config, tmp_path)["generations"]
    with pytest.raises(UserError, match=r"student\.repeat is not set there and 1 here"):
        run_all(again, tmp_path)


def test_a_students_own_epochs_stretch_its_schedule_and_leave_the_teacher_alone(
    config: CifarConfig, tmp_path: Path
) -> None:
    joint = StudentConfig(objective="cross_entropy", epochs=3)
    run_all(config, tmp_path / "plain")
    summary = run_all(dataclasses.replace(config, student=joint), tmp_path / "joint")
    teachers = [
        json.loads((tmp_path / name / "generation_0.json").read_text())["sha256"] for name in ("plain", "joint")
    ]
    assert teachers[0] == teachers[1]
    rates = values(tmp_path / "joint", "generation_1", "train/learning_rate")
    # cosine over 12 steps from 0.05, seen after every second one: the rate of steps 2, 4, ... 12
    expected = [0.05 * (1 + math.cos(math.pi * step / 12)) / 2 for step in (1, 3, 5, 7, 9, 11)]
    assert rates == pytest.approx(expected)
    tested = [line for line in lines(tmp_path / "joint" / "metrics.jsonl") if "test/accuracy" in line["values"]]
    assert [line["step"] for line in tested] == [160, 3 * 160]
    assert "1 epoch (the students 3)" in " ".join(format_summary(summary).split())


def test_nothing_of_a_lesson_stays_but_the_student(config: CifarConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers: list[weakref.ref[training.Trainer]] = []
    make_trainer = Workshop.make_trainer

    def watch(self: Workshop, *arguments: Any, **options: Any) -> training.Trainer:
        one = make_trainer(self, *arguments, **options)
        trainers.append(weakref.ref(one))
        return one

    monkeypatch.setattr(Workshop, "make_trainer", watch)
    one = keeper_of(config)
    gc.disable()
    try:
        student = one.first()
        assert [trainer() for trainer in trainers] == [None, None], "of the rehearsal, and of generation 0"
    finally:
        gc.enable()
    assert all(parameter.grad is None for parameter in student.parameters())


def test_a_fresh_start_would_remove_whatever_a_run_writes(config: CifarConfig, tmp_path: Path) -> None:
    run_all(config, tmp_path)
    left = [path for path in tmp_path.iterdir() if not any(map(path.match, (*PARTIAL, *PRODUCTS)))]
    assert {path.name for path in left} == {"config.yaml", "summary.json", ".lock", "checkpoints"}


def test_ensembles_are_the_mean_probability_of_the_generations_in_the_files(
    config: CifarConfig, tmp_path: Path
) -> None:
    chosen = ((1, 2), (2, 1, 0), (3, 2))
    config = dataclasses.replace(
        config, evaluation=EvaluationConfig(ensembles=chosen), lineage=LineageConfig(3), seed=1
    )
    summary = run_all(config, tmp_path)
    images = load_images(config.data)

    def predict_all(part: ImageSet) -> list[NDArray[np.float64]]:
        files = [tmp_path / f"generation_{generation}.safetensors" for generation in range(4)]
        with torch.no_grad():
            return [load_classifier(file)(part.images).double().softmax(dim=1).numpy() for file in files]

    tested, held_out = predict_all(images.test), predict_all(images.validation)
    labels = images.test.labels.numpy()
    for ensemble, members, reference in zip(summary["ensembles"], chosen, (0, None, 1), strict=True):
        assert ensemble["members"] == list(members)
        assert ensemble["reference"] == reference
        mean = np.mean([tested[member] for member in members], axis=0)
        metrics = ensemble["metrics"]
        assert metrics["test_accuracy"] == pytest.approx((mean.argmax(1) == labels).mean())
        assert metrics["test_nll"] == pytest.approx(-np.log(mean[np.arange(100), labels]).mean(), rel=1e-4)
        assert metrics["test_ece"] == pytest.approx(calibration_error(torch.from_numpy(mean).log(), images.test.labels))
        validated = np.mean([held_out[member] for member in members], axis=0).argmax(1)
        assert metrics["val_accuracy"] == pytest.approx((validated == images.validation.labels.numpy()).mean())
        if reference is None:
            assert metrics["agreement"] is metrics["kl"] is None
        else:
            assert metrics["agreement"] == pytest.approx((mean.argmax(1) == tested[reference].argmax(1)).mean())
            assert metrics["kl"] == pytest.approx(rel_entr(tested[reference], mean).sum(1).mean(), rel=1e-4)
    rows = [line for line in format_summary(summary, wide=True).splitlines() if "ensemble of" in line]
    for row, ensemble in zip(rows, summary["ensembles"], strict=True):
        agreement = ensemble["metrics"]["agreement"]
        assert agreement is None or f" {agreement:.3f} " in row


def test_the_files_hold_the_generations_of_the_summary(config: CifarConfig, tmp_path: Path) -> None:
    summary = run_all(config, tmp_path)
    images = load_images(config.data)
    for generation in summary["generations"]:
        opened = load_classifier(tmp_path / f"generation_{generation['generation']}.safetensors")
        assert weights_sha256(opened.network.state_dict()) == generation["sha256"]
        measured = measure(opened(images.test.images), images.test.labels)
        for name in ("accuracy", "nll", "ece"):
            assert generation["metrics"][f"test_{name}"] == pytest.approx(measured[name], abs=1e-6)
        assert opened.card["dataset"] == "cifar10"
        assert opened.card["generation"] == generation["generation"]


def test_right_and_wrong_answers_are_kept_with_the_run(config: CifarConfig, tmp_path: Path) -> None:
    summary = run_all(config, tmp_path)
    images = load_images(config.data)
    assert [record["file"] for record in summary["correct"]] == [f"generation_{k}_correct.npz" for k in (0, 1)]
    for k, record in enumerate(summary["correct"]):
        correct = read_correct(tmp_path, record)
        scores = load_classifier(tmp_path / f"generation_{k}.safetensors")(images.test.images)
        assert correct.tolist() == (scores.argmax(1) == images.test.labels).tolist()
        assert correct.mean() == pytest.approx(summary["generations"][k]["metrics"]["test_accuracy"])


def test_accuracy_on_the_training_images_is_of_the_network_as_it_will_be_used(
    config: CifarConfig, tmp_path: Path
) -> None:
    summary = run_all(config, tmp_path)
    train = load_images(config.data).train
    for k, generation in enumerate(summary["generations"]):
        scores = load_classifier(tmp_path / f"generation_{k}.safetensors")(train.images)
        right = (scores.argmax(1) == train.labels).double().mean().item()
        assert generation["metrics"]["train_accuracy"] == pytest.approx(right, abs=1e-9)


def test_the_summary_names_the_selection_rule_and_the_images(config: CifarConfig, tmp_path: Path) -> None:
    summary = run_all(config, tmp_path)
    first, second = (generation["metrics"] for generation in summary["generations"])
    assert first["selection"] == second["selection"] == "last"
    assert first["agreement"] is None
    assert 0 <= second["agreement"] <= 1
    assert second["kl"] > 0
    assert 0 <= second["val_accuracy"] <= 1
    assert {name: part["images"] for name, part in summary["data"].items()} == {
        "train": 160,
        "validation": 40,
        "test": 100,
    }
    assert summary["kind"] == "cifar"


def test_without_validation_images_there_is_no_validation_accuracy(config: CifarConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, validation_images=0))
    summary = run_all(config, tmp_path)
    assert [generation["metrics"]["val_accuracy"] for generation in summary["generations"]] == [None, None]
    assert summary["ensembles"][0]["metrics"]["val_accuracy"] is None
    assert values(tmp_path, "generation_1", "val/accuracy") == []
    assert summary["data"]["train"]["images"] == 200


@pytest.mark.parametrize(
    ("teacher", "student"),
    [("resnet-8", "densenet-10-4"), ("densenet-10-4", "wrn-10-1"), ("wrn-10-1", "densenet-10-4")],
)
def test_students_of_another_architecture_are_named_and_stay_so(
    config: CifarConfig, tmp_path: Path, teacher: str, student: str
) -> None:
    config = dataclasses.replace(
        config, teacher=TeacherConfig(teacher), student=StudentConfig(student), lineage=LineageConfig(2)
    )
    run_all(config, tmp_path)
    found = [load_classifier(tmp_path / f"generation_{k}.safetensors").card["architecture"] for k in range(3)]
    assert found == [teacher, student, student]


def test_the_same_seed_writes_the_same_metrics_and_another_seed_others(config: CifarConfig, tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_all(dataclasses.replace(config, seed=seed), tmp_path / name)
        texts.append((tmp_path / name / "metrics.jsonl").read_text())
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("ban_l", {"label_weight": 0.5}),
        ("hinton_kd", {"temperature": 2.0}),
        ("cwtm", {}),
        ("dkpp", {"permutation": "fixed"}),
        ("dkpp", {}),
        ("uniform_confidence", {}),
        ("cross_entropy", {"label_smoothing": 0.1}),
        ("policy_kl", {}),
    ],
)
def test_every_objective_trains_a_student(
    config: CifarConfig, tmp_path: Path, objective: str, options: dict[str, Any]
) -> None:
    config = dataclasses.replace(config, student=StudentConfig(objective=objective, **options))
    summary = run_all(config, tmp_path)
    assert summary["generations"][1]["objective"] == objective
    losses = values(tmp_path, "generation_1", "train/loss")
    assert len(losses) == 2
    assert all(0 < loss < 10 for loss in losses)


def test_a_classifiers_logits_are_taken_at_temperature_1_by_objectives_made_for_q_values() -> None:
    from polydistill.losses import policy_kl

    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, generator=generator) for _ in range(2))
    taught = Lesson("policy_kl", nn.Identity())(student, teacher, torch.zeros(6, dtype=torch.int64), None)
    assert torch.equal(taught, policy_kl(student, teacher, temperature=1.0))


# ---- validation, test and clock ----------------------------------------------------------------------------------


def test_best_val_keeps_the_weights_of_the_best_epoch(config: CifarConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, epochs=5, learning_rate=0.3),
        evaluation=EvaluationConfig(selection="best_val"),
    )
    summary = run_all(config, tmp_path)
    for generation in summary["generations"]:
        curve = values(tmp_path, f"generation_{generation['generation']}", "val/accuracy")
        assert len(curve) == 5
        assert generation["metrics"]["val_accuracy"] == max(curve)
        assert generation["metrics"]["selection"] == "best_val"


def test_each_generation_sees_the_test_set_once(
    config: CifarConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def spy(network: nn.Module, images: Any, *rest: Any) -> Tensor:
        seen.append(len(images))
        return predict(network, images, *rest)

    for module in (examiner, evaluation):
        monkeypatch.setattr(module, "predict", spy)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, epochs=3))
    run_all(config, tmp_path)
    assert seen.count(100) == 2, "the test set, once per generation"
    assert seen.count(40) == 2 * (3 + 1), "validation images: each epoch, and for the table"


def test_the_training_rate_counts_the_loader_in_and_leaves_validation_out(
    config: CifarConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_predict(*arguments: Any) -> Tensor:
        time.sleep(0.5)
        return predict(*arguments)

    take_batch = training.take_batch

    def slow_batch(*arguments: Any) -> tuple[Tensor, Tensor]:
        time.sleep(0.25)
        return take_batch(*arguments)

    for module in (examiner, evaluation):
        monkeypatch.setattr(module, "predict", slow_predict)
    monkeypatch.setattr(training, "take_batch", slow_batch)
    summary = run_all(config, tmp_path)
    rate = summary["throughput"]["generation_1_train_samples_per_second"]
    with_validation = summary["throughput"]["generation_1_train_and_validation_samples_per_second"]
    assert 160 / rate >= 4 * 0.25, "four batches"
    assert 160 / with_validation - 160 / rate >= 0.5, "one validation"
    assert lines(tmp_path / "timing.jsonl")[-1]["values"]["time/train_samples_per_second"] <= 160


def test_curves_have_samples_as_their_axis(config: CifarConfig, tmp_path: Path) -> None:
    run_all(config, tmp_path)
    steps = [
        (line["step"], sorted(line["values"])[0])
        for line in lines(tmp_path / "metrics.jsonl")
        if line["role"] == "generation_1"
    ]
    assert steps == [
        (80, "distill/label_share"),
        (160, "distill/label_share"),
        (160, "val/accuracy"),
        (160, "test/accuracy"),
    ]


def test_the_charts_that_tensorboard_opens_with_are_of_tags_that_are_logged(
    config: CifarConfig, tmp_path: Path
) -> None:
    run_all(config, tmp_path)
    logged = {tag for line in lines(tmp_path / "metrics.jsonl") for tag in line["values"]}
    shown = [tag for tags in CifarDomain.charts.values() for tag in tags]
    assert shown[0] == "val/accuracy"
    assert set(shown) <= logged


# ---- a teacher from a file ---------------------------------------------------------------------------------------


def test_a_file_of_an_earlier_run_can_be_generation_0(config: CifarConfig, tmp_path: Path) -> None:
    earlier = run_all(config, tmp_path / "a")
    path = str(tmp_path / "a" / "generation_1.safetensors")
    later = run_all(dataclasses.replace(config, teacher=TeacherConfig("resnet-8", path)), tmp_path / "b")
    assert later["generations"][0]["sha256"] == earlier["generations"][1]["sha256"]
    assert later["generations"][0]["metrics"]["test_accuracy"] == earlier["generations"][1]["metrics"]["test_accuracy"]
    assert "(a file)" in format_summary(later)
    assert load_classifier(tmp_path / "b" / "generation_0.safetensors").card["architecture"] == "resnet-8"


def test_a_file_that_does_not_fit_the_run_is_refused(
    config: CifarConfig, tmp_path: Path, made_up_cifar10: Path
) -> None:
    run_all(config, tmp_path / "a")
    path = tmp_path / "a" / "generation_0.safetensors"

    def refused(config: CifarConfig) -> str:
        with pytest.raises(UserError) as caught:
            keeper_of(config).first()
        return str(caught.value)

    other = dataclasses.replace(config, teacher=TeacherConfig("wrn-10-1", str(path)))
    assert "holds a resnet-8, but teacher.network is wrn-10-1" in refused(other)
    hundred = dataclasses.replace(
        config,
        teacher=TeacherConfig("resnet-8", str(path)),
        data=DataConfig("cifar100", made_up=300, validation_images=0),
    )
    assert "tells 10 classes apart, the images of this run have 100" in refused(hundred)


def test_a_moved_teacher_of_weights_in_half_precision_is_the_same_teacher(config: CifarConfig, tmp_path: Path) -> None:
    weights = {name: tensor.half() for name, tensor in build_network("resnet-8", 10, seed=5).state_dict().items()}
    save_file(weights, tmp_path / "teacher.safetensors")
    given = dataclasses.replace(config, teacher=TeacherConfig("resnet-8", str(tmp_path / "teacher.safetensors")))
    found = run_all(given, tmp_path / "run")
    moved = (tmp_path / "teacher.safetensors").rename(tmp_path / "moved.safetensors")
    given = dataclasses.replace(config, teacher=TeacherConfig("resnet-8", str(moved)))
    require_same_teacher(given, found["generations"][0]["sha256"])


@pytest.mark.parametrize("name", ["teacher.safetensors", "teacher.pt"])
def test_weights_without_a_card_can_be_generation_0(config: CifarConfig, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    teacher = build_network("resnet-8", 10, seed=5)
    if name.endswith(".pt"):
        torch.save({"state_dict": teacher.state_dict()}, path)
    else:
        save_file(teacher.state_dict(), path)
    given = dataclasses.replace(config, teacher=TeacherConfig("resnet-8", str(path)))
    found = run_all(given, tmp_path / "b")
    sha256 = weights_sha256(teacher.state_dict())
    assert found["generations"][0]["sha256"] == found["generations"][1]["teacher_sha256"] == sha256
    require_same_teacher(given, sha256)
    with pytest.raises(UserError, match="holds other weights than those that this run began with"):
        require_same_teacher(given, found["generations"][1]["sha256"])


def test_a_foreign_file_is_told_by_its_names_and_not_by_a_card(config: CifarConfig, tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"conv1.weight": torch.zeros(3)}, path)
    given = dataclasses.replace(config, teacher=TeacherConfig("resnet-8", str(path)))
    with pytest.raises(UserError, match=r"resnet-8 with 10 classes: missing .*; unexpected conv1") as told:
        keeper_of(given).first()
    assert "card" not in str(told.value)


# ---- what goes wrong ---------------------------------------------------------------------------------------------


def test_a_diverging_lesson_leaves_its_last_good_weights(config: CifarConfig, tmp_path: Path) -> None:
    # weight decay times rate: each step multiplies the weights by -1e6
    bad = dataclasses.replace(config.training, learning_rate=1e6, weight_decay=1.0, epochs=3)
    with pytest.raises(FloatingPointError, match=r"at step \d+ of 12 \(epoch \d") as caught:
        run_all(dataclasses.replace(config, training=bad), tmp_path)
    path = Path(str(caught.value).rsplit(" ", 1)[1])
    assert path == tmp_path / "generation_0_failure.pt"
    failure = torch.load(path, weights_only=True)
    assert f"at step {failure['batch']['step']} of 12" in str(caught.value)
    assert failure["state"]["steps"] == failure["batch"]["step"] - 1
    assert failure["batch"]["images"].shape == (40, 3, 32, 32)
    assert math.isfinite(failure["batch"]["loss"]) == ("leads to weights that are not finite" in str(caught.value))
    assert not (tmp_path / "summary.json").exists()


def test_out_of_memory_is_one_line_that_names_the_setting(
    config: CifarConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_step = update.Update.__call__

    def limited(self: update.Update, inputs: Tensor, *rest: Any) -> Any:
        if len(inputs) > 26:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return make_step(self, inputs, *rest)

    monkeypatch.setattr(update.Update, "__call__", limited)
    with pytest.raises(UserError, match=r"training\.batch_size 40 for resnet-8; choose a smaller batch size$"):
        run_all(config, tmp_path)


def test_out_of_memory_in_validation_does_not_blame_the_batch(
    config: CifarConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(evaluation, "predict", fail)
    with pytest.raises(UserError, match=r"out of memory on cpu for generation 0 .* the validation images") as caught:
        run_all(config, tmp_path)
    assert "batch_size" not in str(caught.value)


# ---- where the networks lie --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [True, False])
def test_every_network_lies_in_the_configured_format_and_is_made_after_the_threads_are_set(
    config: CifarConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels_last: bool
) -> None:
    def lies_right(network: nn.Module) -> bool:
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)]
        return bool(layers) and all(
            layer.weight.is_contiguous(memory_format=torch.channels_last) is channels_last for layer in layers
        )

    made: list[str] = []
    places = (
        (workshop, "prepare"),
        (workshop, "build_network"),
        (domain, "build_network"),
        (classifier, "build_network"),
    )
    for module, name in places:
        original = getattr(module, name)

        def record(*given: Any, name: str = name, original: Any = original, **named: Any) -> Any:
            made.append(name)
            return original(*given, **named)

        monkeypatch.setattr(module, name, record)
    schedule = dataclasses.replace(config.training, channels_last=channels_last)
    config = dataclasses.replace(config, training=schedule)
    with Run.open(tmp_path / "a", config, kind="cifar", command="test") as run:
        one = keeper_of(config, run)
        for generation in Lineage(one, config.lineage):
            assert lies_right(generation.member)
            one.keep(generation)
            if generation.generation == 0:
                break
    assert made[:2] == ["prepare", "build_network"]
    made.clear()
    with Run.open(tmp_path / "a", config, kind="cifar", command="test") as run:
        assert lies_right(keeper_of(config, run).resume()[0].member)
    assert made[:2] == ["prepare", "build_network"]
    made.clear()
    path = str(tmp_path / "a" / "generation_0.safetensors")
    from_file = dataclasses.replace(config, teacher=TeacherConfig("resnet-8", path))
    assert lies_right(keeper_of(from_file).first())
    assert made[:2] == ["prepare", "build_network"]


def test_batch_norm_is_synchronised_between_processes_where_asked_for(config: CifarConfig) -> None:
    def layers(one: Workshop) -> tuple[int, int]:
        modules = list(one.make_student("resnet-8", 0).modules())
        synchronised = sum(isinstance(module, nn.SyncBatchNorm) for module in modules)
        return synchronised, sum(isinstance(module, nn.BatchNorm2d) for module in modules)

    plain = Workshop(config, load_images(config.data))
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, sync_batchnorm=True))
    asked = Workshop(config, load_images(config.data))
    assert layers(asked) == layers(plain) == (0, 7), "one process has nobody to synchronise with"
    plain.processes = asked.processes = Processes(0, 2)
    assert layers(plain) == (0, 7)
    assert layers(asked) == (7, 0)
    with pytest.raises(UserError, match=r"sync_batchnorm works on GPUs only: choose --training\.sync_batchnorm false"):
        Workshop(config, load_images(config.data), Processes(0, 2))


def test_all_processes_keep_the_weights_that_are_best_by_rank_0s_measure(
    config: CifarConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [0.5, 0.7, 0.6]  # rank 0's accuracies; here the last epoch seems best
    own = iter([0.5, 0.6, 0.7])

    class SecondOfTwo(Processes):
        def first_says(self, value: Any) -> Any:
            return first.pop(0) if isinstance(value, float) else value

    def fake_measure(*arguments: Any) -> dict[str, float]:
        return {"accuracy": next(own), "nll": 1.0, "ece": 0.1}

    monkeypatch.setattr(evaluation, "measure", fake_measure)
    config = dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, epochs=3),
        evaluation=EvaluationConfig(selection="best_val"),
    )
    images = load_images(config.data)
    one = Workshop(config, images, SecondOfTwo())
    trainer = one.make_trainer(one.make_student("resnet-8", 0), Lesson("cross_entropy"), 0)
    validation = validation_of(images.validation, one.normalizer, config.evaluation)
    way = TrainingCourse(trainer, Recorder(None, 0), validation)
    way.learn(never, lambda: None)
    assert way.best is not None
    assert way.best[0] == 0.7
    steps = {tensor.item() for name, tensor in way.best[1].items() if name.endswith("num_batches_tracked")}
    assert steps == {8}, "those of the second epoch of 4 steps"


# ---- the paper ---------------------------------------------------------------------------------------------------


def test_the_papers_rows_are_found_by_network_objective_and_generation() -> None:
    def dense(objective: str, generation: int) -> float | None:
        return paper_error("cifar100", "densenet-80-80", "densenet-80-80", objective, generation)

    assert [dense("ban", k) for k in range(5)] == [17.16, 16.36, 16.30, 15.50, None]
    assert [dense(name, 1) for name in ("ban_l", "cwtm", "dkpp", "hinton_kd")] == [16.50, 17.16, 16.84, None]
    assert dense("cwtm", 2) is None
    assert paper_error("cifar100", "wrn-28-2", "densenet-90-60", "ban", 1) == 18.49
    assert paper_error("cifar100", "wrn-28-2", "densenet-90-60", "ban", 2) is None
    assert paper_error("cifar100", "densenet-90-60", "densenet-90-60-depth-2", "ban", 1) == 16.43
    wide = "wide-4-0.5-like-densenet-90-60"  # of table 5, where both layers are the teacher's
    assert paper_error("cifar100", "densenet-90-60", wide, "ban", 1, ["last", "first"]) == 17.13
    assert paper_error("cifar100", "densenet-90-60", wide, "ban", 1, ["last"]) is None
    assert paper_error("cifar100", "densenet-90-60", wide, "ban", 1) is None
    assert paper_error("cifar100", wide, wide, "ban", 0) == 19.63
    assert paper_error("cifar100", "densenet-90-60", "densenet-90-60", "ban", 1, ["first", "last"]) is None
    assert paper_error("cifar10", "wrn-28-10", "wrn-28-10", "ban", 1) == 3.86
    assert paper_error("cifar100", "resnet-20", "resnet-20", "ban", 0) is None
    assert len(PAPER) == 16 + 7, "tables 1 to 3, and what learns from labels in table 5"


def test_the_table_shows_the_papers_row_beside_ours(config: CifarConfig, tmp_path: Path) -> None:
    summary = run_all(config, tmp_path)
    assert "paper's" not in format_summary(summary)
    summary["config"]["teacher"]["network"] = "wrn-28-1"
    text = format_summary(summary, wide=True)
    assert re.search(r"generation 0, wrn-28-1 .* labels .* 6\.69 ", text)
    assert re.search(r"generation 1, wrn-28-1 .* ban .* 6\.64 ", text)
    assert re.search(r"ensemble of 0, 1 .* 150,580 ", text)
    assert "one run of 200 epochs" in " ".join(text.split())


def test_a_run_from_before_ensembles_had_agreement_shows_its_table(root: Path) -> None:
    summary = json.loads((root / "scripts" / "measurements" / "resnet8_short-ban-seed0.json").read_text())
    for ensemble in summary["ensembles"]:
        ensemble["metrics"].pop("agreement", None)
    assert "ensemble of" in format_summary(summary)
