"""What a lineage costs, what this machine is, and the examples of the docstrings."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import polydistill.learning
import polydistill.vision
from polydistill import cores
from polydistill import device as device_module
from polydistill.device import FEW_ROWS, compile_network, few_rows, resolve_precision, resolve_threads
from polydistill.errors import UserError
from polydistill.learning.schedules import TrainingConfig
from polydistill.lineage import LineageConfig
from polydistill.vision.config import CifarConfig, EvaluationConfig, StudentConfig, TeacherConfig
from polydistill.vision.cost import count_cost
from polydistill.vision.images.data import DataConfig
from polydistill.vision.plan import disk_bytes, format_plan

MODULES = sorted(
    module.name
    for package in (polydistill.learning, polydistill.vision)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
)


@pytest.mark.parametrize(
    ("name", "millions"),  # multiply-adds of one image, counted by others
    [("resnet-20", 41), ("wrn-16-2", 101), ("wrn-16-4", 393), ("wrn-40-2", 328), ("wrn-28-10", 5240)],
)
def test_multiply_adds_are_those_that_others_count(name: str, millions: float) -> None:
    assert count_cost(name, 100).operations / 2e6 == pytest.approx(millions, rel=0.015)


def test_the_plan_counts_steps_images_and_disk_of_the_papers_recipe(tmp_path: Path) -> None:
    config = CifarConfig(device="cpu", threads=1, precision="float32", data=DataConfig(validation_images=0))
    threads = torch.get_num_threads()
    try:
        plan = format_plan(config, tmp_path / "run")
    finally:
        torch.set_num_threads(threads)
    assert "2 generations of 50,000 images and 78,200 steps each" in plan
    # 2 x 375,348 weights of 4 bytes, 3 checkpoints of weights and momentum, 2 x 200 epochs of 10 KB, small files
    assert "disk: up to 16.2 MB" in plan
    assert list(tmp_path.iterdir()) == []


def test_the_memory_of_a_plan_is_that_of_the_generation_that_takes_most(tmp_path: Path) -> None:
    def memory(teacher: str, student: str, generations: int, path: str = "") -> float:
        config = CifarConfig(
            device="cpu",
            threads=1,
            precision="float32",
            teacher=TeacherConfig(teacher, path),
            student=StudentConfig(student),
            lineage=LineageConfig(generations),
        )
        (found,) = re.findall(r"memory: about ([\d.]+) GiB", format_plan(config, tmp_path))
        return float(found)

    large, small = "densenet-100-24", "resnet-8"
    cost = count_cost(large, 100)
    alone = (128 * cost.outputs * 4 + 16 * cost.parameters) / 2**30  # float32; weight, gradient, momentum, its update
    assert memory(large, small, 0) == memory(large, small, 1) == pytest.approx(alone, abs=0.006)
    taught = alone + 4 * cost.parameters / 2**30
    assert memory(large, large, 1) == pytest.approx(taught, abs=0.006)
    light = count_cost(small, 100)
    from_file = (128 * light.outputs * 4 + 16 * light.parameters + 4 * cost.parameters) / 2**30
    assert memory(large, small, 1, "a.safetensors") == pytest.approx(from_file, abs=0.006)
    assert memory(small, large, 1) == pytest.approx(alone, abs=0.006)


def test_the_plan_of_a_teacher_alone_has_no_students_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data, teacher = DataConfig(validation_images=0), TeacherConfig(network="resnet-20")
    config = CifarConfig(device="cpu", threads=1, precision="float32", data=data, teacher=teacher)
    plan = format_plan(dataclasses.replace(config, lineage=LineageConfig(0)), tmp_path)
    assert "generation 0 alone, of 50,000 images and 78,200 steps\n" in plan
    assert "students" not in plan
    # 10,000,000 images at 3/4 of the work of one that ResNet-20 teaches at 725 images/s
    assert "time: about 2.9 h on" in plan


def test_the_plan_counts_the_students_own_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data, teacher = DataConfig(validation_images=0), TeacherConfig(network="resnet-20")
    config = CifarConfig(device="cpu", threads=1, precision="float32", data=data, teacher=teacher)
    twice = dataclasses.replace(config, student=StudentConfig(epochs=400))
    plan = format_plan(twice, tmp_path)
    assert "2 generations of 50,000 images and 78,200 steps, a student 156,400\n" in plan
    # 20,000,000 images that ResNet-20 teaches at 725 images/s, and 10,000,000 without a teacher's pass
    assert "time: about 10.5 h on" in plan
    # beside what the plan of the recipe counts: 200 more epochs of 10 KB
    assert disk_bytes(twice, 50_000) - disk_bytes(config, 50_000) == 200 * 10_000


def test_a_speed_from_elsewhere_counts_for_the_network_that_it_was_measured_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # no run here is remembered
    data, teacher = DataConfig(validation_images=0), TeacherConfig(network="resnet-20")
    plan = format_plan(CifarConfig(device="cpu", threads=1, precision="float32", data=data, teacher=teacher), tmp_path)
    # ResNet-20 by ResNet-20 made 725 images/s: 10,000,000 images, and 3/4 of that work again without a teacher's pass
    assert "time: about 6.7 h on two cores of an AMD EPYC (Zen 4) (measured there, with resnet-20)" in plan


def test_ensembles_are_of_the_students_unless_asked_for() -> None:
    assert EvaluationConfig().chosen_ensembles(3) == [(1, 2), (1, 2, 3)]
    assert EvaluationConfig().chosen_ensembles(1) == [(0, 1)]
    assert EvaluationConfig(ensembles=()).chosen_ensembles(3) == []
    assert EvaluationConfig(ensembles=((0, 3),)).chosen_ensembles(3) == [(0, 3)]


def test_without_a_compiler_there_is_one_line_and_the_network_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device_module.shutil, "which", lambda name: None)
    device_module._say_once.cache_clear()  # another test may have made it say so
    network = nn.Linear(2, 2)
    assert compile_network(network, torch.device("cpu")) is network
    assert capsys.readouterr().err.count("\n") == 1


def test_an_explicit_precision_is_kept() -> None:
    assert resolve_precision("float32", "cpu") == "float32"
    assert resolve_precision("bfloat16", "cpu") == "bfloat16"
    assert resolve_precision("auto", "cpu") in ("float32", "bfloat16")


def test_a_number_of_threads_that_is_given_is_meant() -> None:
    assert resolve_threads(64, step=1.0, run=1.0) == 64


def test_what_auto_meant_is_kept_when_a_run_is_continued_on_another_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device_module._say_once.cache_clear()
    stored = {"device": "cpu", "threads": 64, "precision": "bfloat16"}
    monkeypatch.setattr(device_module, "_computes_bfloat16", lambda device: False)
    found = CifarConfig().resolve(stored)
    assert {name: getattr(found, name) for name in stored} == stored
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "64 threads" in lines[1]
    given = CifarConfig(device="cpu", threads=1, precision="float32").resolve(stored)
    assert (given.threads, given.precision) == (1, "float32")
    assert CifarConfig(device="cpu", precision="float32").resolve({"threads": "many"}).threads >= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_that_was_begun_on_a_gpu_is_one_line_without_one() -> None:
    with pytest.raises(UserError, match="was begun on a GPU"):
        CifarConfig().resolve({"device": "cuda", "threads": 1, "precision": "bfloat16"})


def test_threads_follow_the_work_of_generation_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 8)
    smoke = CifarConfig(
        device="cpu",
        teacher=TeacherConfig(network="resnet-8"),
        data=DataConfig(made_up=500, validation_images=100),
        training=TrainingConfig(epochs=3, batch_size=50),
    )
    assert smoke.resolve().threads == 1, "seconds of work"
    assert CifarConfig(device="cpu").resolve().threads == 8, "the paper's recipe"
    small = dataclasses.replace(smoke, training=TrainingConfig(epochs=10_000, batch_size=2))
    assert small.resolve().threads == 1, "a long run of small steps"


def test_few_rows_are_computed_by_one_thread_and_the_others_come_back() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for rows, inside in ((1, 1), (FEW_ROWS, 1), (FEW_ROWS + 1, 3)):
            with few_rows(rows):
                assert torch.get_num_threads() == inside
            assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError), few_rows(1):
            raise ZeroDivisionError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_there_are_examples_to_check() -> None:
    finder = doctest.DocTestFinder()
    examples = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(examples) >= 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method.:DeprecationWarning")  # of inductor's own modules
def test_a_compiled_lesson_is_the_eager_one(tmp_path: Path) -> None:
    from polydistill.learning.lesson import Lesson
    from polydistill.vision.images.augmentation import Normalizer
    from polydistill.vision.images.data import load_images
    from polydistill.vision.networks import build_network
    from polydistill.vision.training import Trainer

    images = load_images(DataConfig("cifar10", made_up=64, validation_images=0))
    weights = []
    for compiled in (False, True):
        trainer = Trainer(
            build_network("resnet-8", 10, seed=0),
            Lesson("ban", build_network("resnet-8", 10, seed=1), generation=1),
            images.train,
            Normalizer.of(images.normalization),
            TrainingConfig(epochs=1, batch_size=32, learning_rate=0.05, compile=compiled),
            seed=0,
            generation=1,
        )
        assert [report.steps for report in trainer.run()] == [2]
        weights.append(trainer.student.state_dict())
    for name, eager in weights[0].items():
        assert torch.allclose(eager.float(), weights[1][name].float(), atol=1e-3), name
