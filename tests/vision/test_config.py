"""polydistill.vision.config: whatever a config can know is checked when it is built, before data, folder and hours."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from polydistill.errors import UserError
from polydistill.learning.schedules import TrainingConfig
from polydistill.learning.taught import NO_OPTIONS, TaughtConfig
from polydistill.losses import OBJECTIVES
from polydistill.vision.config import CifarConfig, EvaluationConfig, StudentConfig, TeacherConfig
from polydistill.vision.images.data import DataConfig

HUGE = 10**12
# field -> what is accepted of -1, 0 and HUGE; NaN and infinities never are
ACCEPTED: dict[str, set[int]] = {
    "seed": {0, HUGE},
    "threads": {0},
    "data.validation_images": {0},
    "data.train_images": {0},
    "data.test_images": {0},
    "data.made_up": {0},
    "data.classes": {0},
    "data.images_per_class": {0},
    "teacher.label_smoothing": {0},
    "student.temperature": {HUGE},
    "student.label_weight": {0, HUGE},
    "student.teacher_weight": {0, HUGE},
    "student.label_smoothing": {0},
    "student.alpha": {0, HUGE},
    "student.beta": {0, HUGE},
    "student.delta": {HUGE},
    "student.activation_weight": {0, HUGE},
    "student.repeat": {0, HUGE},
    "student.epochs": {HUGE},
    "training.epochs": {HUGE},
    "training.batch_size": set(),
    "training.learning_rate": {HUGE},
    "training.momentum": {0},
    "training.weight_decay": {0, HUGE},
    "training.decay": set(),
    "training.log_every_steps": set(),
    "evaluation.every_epochs": {0, HUGE},
    "lineage.generations": {0},
    "checkpoint.every_seconds": {0, HUGE},
    "checkpoint.every_steps": {0, HUGE},
}
OF_CLASSIFIERS = [name for name, one in OBJECTIVES.items() if not one.needs_q_values]
# the objective with which an option of the student's has an effect
OBJECTIVE = {
    **{"temperature": "hinton_kd", "label_weight": "ban_l", "teacher_weight": "hinton_kd"},
    **{"label_smoothing": "cross_entropy", "alpha": "dkd", "beta": "dkd", "delta": "policy_huber"},
}


def number_fields(config_class: Any = CifarConfig, prefix: str = "") -> Iterator[str]:
    for name, annotation in typing.get_type_hints(config_class).items():
        if dataclasses.is_dataclass(annotation):
            yield from number_fields(annotation, f"{prefix}{name}.")
        elif {int, float} & {annotation, *typing.get_args(annotation)}:
            yield prefix + name


def build(field: str, value: Any) -> CifarConfig:
    group, _, name = field.rpartition(".")
    values: dict[str, Any] = {name: value}
    if group == "student":
        values["objective"] = OBJECTIVE.get(name, "ban")
    if not group:
        return CifarConfig(**values)
    group_class = typing.get_type_hints(CifarConfig)[group]
    return CifarConfig(**{group: group_class(**values)})


def test_the_table_of_this_test_holds_every_number_of_the_config() -> None:
    assert set(number_fields()) == {*ACCEPTED, "training.milestones"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, 0, HUGE])
@pytest.mark.parametrize("field", ACCEPTED)
def test_each_number_is_accepted_or_refused_in_one_line_that_names_it(field: str, value: float) -> None:
    if value in ACCEPTED[field]:
        build(field, value)
        return
    with pytest.raises(ValueError, match=field.rpartition(".")[2]) as caught:
        build(field, value)
    assert "\n" not in str(caught.value)
    assert re.search(r"nan|inf|-?\d", str(caught.value)), "it says what it got"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("training.milestones", (0.5, math.nan)),
        ("training.milestones", (60.0,)),
        ("training.milestones", (0.6, 0.3)),
        ("training.milestones", (0.3, 0.3)),
        ("training.schedule", "step"),
        ("training.capture", "yes"),
        ("training.augment", 2),
        ("training.augment", "crop"),
        ("data.name", "cifar11"),
        ("data.root", 7),
        ("evaluation.ensembles", ((1, math.nan),)),
        ("evaluation.ensembles", ((1, -1),)),
        ("evaluation.selection", "best"),
        ("device", "gpu"),
        ("precision", "float16"),
    ],
)
def test_what_is_no_number_is_checked_too(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field.rpartition(".")[2]):
        build(field, value)


@pytest.mark.parametrize("name", ["resnet-9", "wrn-28-0", "wrn-28-2001", "densenet-40", "vgg-16", "teacher"])
def test_a_network_that_there_is_not_is_refused_as_teacher_and_as_student(name: str) -> None:
    with pytest.raises(ValueError, match=r"has depths|must lie between|unknown network"):
        TeacherConfig(name)
    if name != "teacher":  # as a student: its teacher's twin
        with pytest.raises(ValueError, match=r"has depths|must lie between|unknown network"):
            StudentConfig(name)


# ---- what does not fit together ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            {"evaluation": EvaluationConfig(ensembles=((1, 3),))},
            "evaluation.ensembles names generation 3, the last is 1",
        ),
        (
            {"evaluation": EvaluationConfig(selection="best_val"), "data": DataConfig(validation_images=0)},
            "evaluation.selection is best_val, but data.validation_images is 0",
        ),
        (
            {"evaluation": EvaluationConfig(every_epochs=5), "data": DataConfig(validation_images=0)},
            "evaluation.every_epochs is 5, but data.validation_images is 0: there is nothing to validate on",
        ),
        (
            {"data": DataConfig(train_images=500, validation_images=100), "training": TrainingConfig(batch_size=401)},
            "training.batch_size is 401, but there are 400 training images",
        ),
        (
            {"data": DataConfig(made_up=300, validation_images=200)},
            "training.batch_size is 128, but there are 100 training images",
        ),
        (
            {"training": TrainingConfig(batch_size=50_000)},
            "training.batch_size is 50,000, but there are 45,000 training images",
        ),
    ],
)
def test_groups_that_do_not_fit_together_are_refused(groups: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        CifarConfig(**groups)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_images": 50_001}, "train_images is 50,001, but cifar100 has 50,000"),
        ({"test_images": 10_001}, "test_images is 10,001, but cifar100 has 10,000"),
        ({"root": "there", "test_images": 10_001}, "test_images is 10,001, but cifar100 has 10,000"),
        ({"validation_images": 50_000}, "validation_images = 50,000 leaves nothing of the 50,000 training images"),
        ({"made_up": 400, "validation_images": 0, "train_images": 401}, "train_images is 401, but made_up is 400"),
        ({"made_up": 400, "validation_images": 0, "test_images": 401}, "test_images is 401, but made_up is 400"),
        ({"name": "cifar10", "made_up": 10_001}, "made_up must be at most 10,000, got 10,001"),
        ({"classes": 101}, "classes must be 0 or from 2 to 100 of cifar100, got 101"),
        ({"classes": 1}, "classes must be 0 or from 2 to 100 of cifar100, got 1"),
        ({"classes": 10}, "validation_images = 5,000 leaves nothing of the 5,000 training images"),
        (
            {"classes": 10, "validation_images": 4_000, "images_per_class": 101},
            "images_per_class = 101 of 10 classes are 1,010 images, but there are 1,000 beside those of validation",
        ),
        ({"images_per_class": 451}, "are 45,100 images, but there are 45,000 beside those of validation"),
        ({"official": False}, "official is false, but root is empty: the official images would be downloaded"),
    ],
)
def test_counts_of_images_are_held_against_the_data_set(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        DataConfig(**options)


def test_images_of_ones_own_are_counted_when_they_are_read() -> None:
    config = DataConfig(root="there", official=False, train_images=60_000, validation_images=55_000)
    assert CifarConfig(data=config, training=TrainingConfig(batch_size=5_000)).data.train_images == 60_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosine", "milestones": (0.5,)}, "milestones are of schedule steps, and schedule is cosine"),
        ({"schedule": "one_cycle", "decay": 0.1}, "decay is of schedule steps, and schedule is one_cycle"),
        ({"milestones": (), "decay": 0.1}, "decay is 0.1, but there are no milestones"),
    ],
)
def test_a_schedules_numbers_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainingConfig(**options)


def test_smoothed_labels_have_no_effect_on_a_teacher_from_a_file() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.1, but the teacher of path is not trained"):
        TeacherConfig(path="a.safetensors", label_smoothing=0.1)


def test_a_cuda_graph_without_a_gpu_is_refused() -> None:
    config = CifarConfig(device="cpu", training=TrainingConfig(capture="on"))
    with pytest.raises(UserError, match=r"training\.capture is on, but device is cpu"):
        config.resolve()


# ---- the options of the losses -----------------------------------------------------------------------------------


def test_every_option_of_every_loss_is_a_field_of_the_student() -> None:
    fields = {field.name for field in dataclasses.fields(TaughtConfig)} - {*NO_OPTIONS, "permutation"}
    assert fields == {option for one in OF_CLASSIFIERS for option in OBJECTIVES[one].options}


def test_a_loss_that_keeps_q_values_is_none_for_classifiers() -> None:
    with pytest.raises(ValueError, match="objective policy_kl_q keeps a DQN's Q-values: a classifier has none"):
        StudentConfig(objective="policy_kl_q")


@pytest.mark.parametrize("objective", OF_CLASSIFIERS)
def test_an_option_is_taken_by_the_losses_that_have_it_and_refused_by_the_others(objective: str) -> None:
    fields = {field.name for field in dataclasses.fields(TaughtConfig)} - {*NO_OPTIONS, "permutation"}
    for name in fields:
        known = OBJECTIVES[objective].options
        if name in known:
            assert StudentConfig(objective=objective, **{name: known[name].default}).options() == {
                name: known[name].default
            }
        else:
            with pytest.raises(ValueError, match=f"objective {objective} has no option {name}"):
                StudentConfig(objective=objective, **{name: 0.5})


def test_an_option_says_which_losses_have_it() -> None:
    with pytest.raises(ValueError, match=r"no option alpha; it has none; alpha is of dkd$"):
        StudentConfig(alpha=1.0)


def test_the_permutation_is_of_dkpp_alone() -> None:
    assert StudentConfig(objective="dkpp", permutation="fixed").options() == {"permutation": "fixed"}
    with pytest.raises(ValueError, match="objective ban has no option permutation"):
        StudentConfig(permutation="fixed")
