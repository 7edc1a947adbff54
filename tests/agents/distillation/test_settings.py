"""Every setting that can be known to be wrong is refused when the student is built, in one line that names it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from polydistill.losses import OBJECTIVES
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.lineage.config import AtariConfig, PlayConfig, StudentConfig
from tests.agents.distillation.squares import Squares, make

NAN = math.nan
COUNTS = ("buffer_size", "batch_size", "train_freq")
OF_CLASSIFIERS = [name for name, one in OBJECTIVES.items() if one.needs_labels or one.needs_permutation]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"temperature": value}, "temperature must be positive and finite") for value in (0.0, -1.0, NAN, math.inf)),
        *(({"temperature": value}, "temperature must be positive and finite") for value in ("1", True)),
        ({"temperature": 1e-60}, "temperature"),
        *(({"samples_per_step": value}, "samples_per_step must be pos") for value in (0, -1.0, NAN, math.inf, "4")),
        *(({"learning_rate": value}, "learning_rate must be pos") for value in (0.0, -1e-3, NAN, math.inf, "1e-3")),
        ({"learning_rate": lambda left: NAN}, "learning_rate must give rates of 0 or more, it gives nan at 1.0"),
        ({"learning_rate": lambda left: left - 0.5}, "learning_rate must give .* -0.5 at 0.0 remaining"),
        *(({"exploration_rate": value}, "exploration_rate is a probability") for value in (1.5, -0.1, NAN, "0")),
        *(({"averaging": value}, "averaging is a share of the updates") for value in (1.0, -0.1, NAN, None)),
        *(({name: 0}, f"{name} must be a whole number of at least 1, got {name}=0") for name in COUNTS),
        *(({"buffer_size": value}, "buffer_size must be a whole number") for value in (1e5, "100", NAN, -5, True)),
        ({"train_freq": (4, "step")}, "train_freq must be a whole number"),
        ({"learning_starts": -1}, "learning_starts must be a whole number of at least 0"),
        ({"learning_starts": 2_001}, "learning_starts=2001 samples do not fit into a replay of buffer_size=2000"),
        ({"batch_size": 2_001}, "batch_size=2001 samples do not fit into a replay of buffer_size=2000"),
        ({"generation": -1}, "generation must be"),
        ({"stats_window_size": 0}, "stats_window_size must be"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"seed": 0.5}, "seed must be"),
        *(({"objective_kwargs": value}, "objective_kwargs must be a dict") for value in (3, [1], {1: 2}, "beta")),
        *(({"policy_kwargs": value}, "policy_kwargs must be a dict") for value in (3, [1], {1: 2}, "net_arch")),
        *(({"tensorboard_log": value}, "tensorboard_log must be the path") for value in (3, True, ["runs"])),
        ({"precision": "float16"}, "unknown precision 'float16'"),
        ({"device": "cuda0"}, "device"),
        ({"objective": "policy_lk"}, "unknown objective 'policy_lk'.*did you mean 'policy_kl'"),
        *(({"objective": name}, "play has no labels") for name in OF_CLASSIFIERS),
        ({"objective": "jsd", "objective_kwargs": {"betta": 0.3}}, "jsd has no option betta.*did you mean beta"),
        ({"objective": "jsd", "objective_kwargs": {"beta": 3.0}}, "beta"),
        ({"objective": "policy_huber", "objective_kwargs": {"delta": NAN}}, "delta"),
        ({"objective": "policy_huber", "objective_kwargs": {"delta": "1"}}, "policy_huber"),
        ({"objective_kwargs": {"temperature": 1.0}}, "temperature is an argument of PolicyDistillation itself"),
        ({"objective": "hinton_kd", "objective_kwargs": {"label_weight": 0.5}}, "label_weight has no effect"),
        ({"size": "net9"}, "unknown size 'net9'"),
        ({"size": 64}, "size is a name or"),
        ({"size": ((16, 16), 64)}, "size must hold three numbers of channels"),
        ({"size": ((16, 16, 0), 64)}, "size must hold three numbers of channels"),
        ({"size": ((16, 16, 16), 64.5)}, "size must hold three numbers of channels"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_work_is_named_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        make(None, env=Squares(), **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in OF_CLASSIFIERS])
def test_every_objective_that_needs_no_labels_learns(name: str) -> None:
    model = make(objective=name, learning_starts=0, batch_size=8, size=((2, 2, 2), 4))
    assert model.learn(16)._n_updates == 8


def test_numbers_of_numpy_are_taken_as_pythons_own() -> None:
    options = {"buffer_size": np.int64(100), "temperature": np.float32(0.5), "seed": np.int64(3), "samples_per_step": 2}
    model = make(None, env=Squares(), **options)
    kept = [getattr(model, name) for name in options]
    assert kept == [100, 0.5, 3, 2.0]
    assert [type(value) for value in kept] == [int, float, int, float]


def test_a_teacher_is_opened_before_anything_is_built_for_long() -> None:
    from polydistill.errors import UserError

    with pytest.raises(UserError, match="no-such-file"):
        PolicyDistillation("CnnPolicy", Squares(), "no-such-file.zip", device="cpu")


@pytest.mark.parametrize(
    ("make_config", "message"),
    [
        (
            lambda: PlayConfig(steps=512, replay_steps=64, warmup_steps=65),
            "warmup_steps = 65 do not fit into a replay of 64 steps",
        ),
        (
            lambda: AtariConfig(
                play=PlayConfig(replay_steps=100, warmup_steps=0), student=StudentConfig(batch_size=101)
            ),
            "student.batch_size = 101 samples do not fit into play.replay_steps = 100",
        ),
    ],
)
def test_a_config_whose_replay_is_too_small_is_refused(make_config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config()
