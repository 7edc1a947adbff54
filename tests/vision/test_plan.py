"""What a lineage costs, what this machine is, and the examples of the docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch
from torch import nn

import polydistill.vision
from polydistill import device as device_module
from polydistill.device import compile_network, resolve_precision
from polydistill.vision.config import CifarConfig, EvaluationConfig
from polydistill.vision.data import DataConfig
from polydistill.vision.plan import count_cost, format_plan
from polydistill.vision.schedules import TrainingConfig

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(polydistill.vision.__path__, polydistill.vision.__name__ + ".")
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
    from polydistill.vision.augmentation import Normalizer
    from polydistill.vision.data import load_images
    from polydistill.vision.lesson import Lesson
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
