"""Kill whole runs at random moments, and see that they end bit for bit as runs that nobody disturbed.

    python tests/torture/torture_runs.py              all scripts: at least 50 kills in at least 10 runs of each
    python tests/torture/torture_runs.py cifar        one of them

Each case is a command, a folder and a comparison; see CASES.
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.torture.killing import Command, Comparison, torture  # noqa: E402
from tests.torture.same import assert_same_run  # noqa: E402


class Case(NamedTuple):
    """What is put through it: ``runs`` times, killed ``kills`` times each."""

    command: Command
    compare: Comparison
    runs: int
    kills: int


def cifar(*words: str) -> Callable[[Path], list[str]]:
    """distill_cifar.py on one thread, for about a minute undisturbed."""

    def command(out: Path) -> list[str]:
        script = str(ROOT / "scripts" / "distill_cifar.py")
        fixed = ["--device", "cpu", "--threads", "1", "--checkpoint.every_seconds", "1", "--out", str(out)]
        return [sys.executable, script, *fixed, *words]

    return command


def atari(*words: str) -> Callable[[Path], list[str]]:
    """distill_atari.py on one thread, for over a minute with its kills; the teacher lies beside the run folder."""

    def command(out: Path) -> list[str]:
        teacher = out.parent / "teacher.zip"
        if not teacher.exists():
            write_teacher(teacher)
        script = str(ROOT / "scripts" / "distill_atari.py")
        fixed = ["--device", "cpu", "--threads", "1", "--checkpoint.every_seconds", "1", "--out", str(out)]
        small = [
            *("--teacher.path", str(teacher), "--play.steps", "5120", "--play.replay_steps", "2560"),
            *("--play.warmup_steps", "800", "--play.n_envs", "8", "--student.batch_size", "32"),
            *(
                "--student.samples_per_step",
                "4",
                "--evaluation.episodes",
                "2",
                "--evaluation.curve_every_steps",
                "3200",
            ),
            *("--evaluation.curve_episodes", "1", "--lineage.generations", "2"),
        ]
        return [sys.executable, script, *fixed, *small, *words]

    return command


def write_teacher(path: Path) -> None:
    """An untrained agent: it loses Pong quickly, so that runs are not all evaluation."""
    import numpy as np
    import torch
    from gymnasium import spaces

    from agents.networks import SIZES, build_network
    from agents.sb3_zip import write_dqn_zip

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    write_dqn_zip(path, build_network(spaces.Box(0, 255, (4, 84, 84), np.uint8), 6, SIZES["net3"]))


def assert_same_agents(expected: Path, found: Path) -> None:
    """As :func:`assert_same_run`; of a zip, which carries the time of its writing, every tensor."""
    import torch

    from agents.sb3_zip import read_agent

    assert_same_run(expected, found, products=())
    zips = [path.name for path in expected.glob("*.zip")]
    assert "student.zip" in zips
    for name in zips:
        one, other = (read_agent(folder / name).weights for folder in (expected, found))
        assert one.keys() == other.keys(), name
        assert all(torch.equal(one[key], other[key]) for key in one), name


CIFAR_FILES = functools.partial(assert_same_run, products=("generation_*.safetensors", "generation_*.json"))

CASES = {
    "cifar": {
        "last weights, ban": Case(cifar("--training.epochs", "40"), CIFAR_FILES, 5, 6),
        "best weights, dkpp, bfloat16": Case(
            cifar(
                *("--training.epochs", "40", "--evaluation.selection", "best_val", "--precision", "bfloat16"),
                *("--student.objective", "dkpp", "--checkpoint.every_steps", "3"),
            ),
            CIFAR_FILES,
            5,
            6,
        ),
    },
    "atari": {
        "policy_kl, a smaller student": Case(
            atari("--precision", "float32", "--student.size", "net3"), assert_same_agents, 5, 8
        ),
        "policy_mse, bfloat16, machado": Case(
            atari(
                *("--precision", "bfloat16", "--student.objective", "policy_mse", "--student.size", "net2"),
                *("--evaluation.protocol", "machado", "--checkpoint.every_steps", "512"),
            ),
            assert_same_agents,
            5,
            8,
        ),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", help=f"of {', '.join(CASES)}; none: all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="where to run; default: a temporary one")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the run in progress is ended too
    unknown = set(chosen.scripts) - set(CASES)
    if unknown:
        parser.error(f"no script {', '.join(sorted(unknown))}")
    for script in chosen.scripts or CASES:
        runs = kills = while_writing = 0
        seconds = 0.0
        for name, case in CASES[script].items():
            with tempfile.TemporaryDirectory() as temporary:
                folder = (chosen.folder or Path(temporary)) / script / "".join(filter(str.isalnum, name))
                found = torture(
                    f"{script}, {name}", case.command, folder, case.compare, runs=case.runs, kills=case.kills,
                    seed=chosen.seed,
                )  # fmt: skip
            runs, kills, while_writing = runs + case.runs, kills + found.kills, while_writing + found.while_writing
            seconds += found.seconds
        print(
            f"{script}: {runs} runs survived {kills} kills, {while_writing} of them while a file was being written, "
            f"in {seconds / 60:.0f} minutes",
            flush=True,
        )


if __name__ == "__main__":
    main()
