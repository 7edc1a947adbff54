"""Kill whole runs at random moments, and see that they end bit for bit as runs that nobody disturbed.

    python tests/crashes/crashes.py              all scripts: at least 50 kills in at least 10 runs of each
    python tests/crashes/crashes.py cifar        one of them

Each case is a command, a folder and a comparison; see CASES. Runs take one thread each: there is one per core at a
time.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.crashes.killing import Command, Comparison, Tally, end_all, run_killed  # noqa: E402
from tests.crashes.same import assert_same_run  # noqa: E402
from tests.image_folders.samples import CLASSES, NETWORK, write_pictures  # noqa: E402

FEWEST_KILLS = 50  # of each script


class Case(NamedTuple):
    """What is put through it: ``runs`` times, killed ``kills`` times each.

    Of a script with two, one takes float32, and one ``auto``: bfloat16 where the processor has its instructions.
    """

    command: Command
    compare: Comparison
    runs: int
    kills: int


def cifar(*words: str) -> Callable[[Path], list[str]]:
    """distill_cifar.py on one thread, for over a minute with its kills."""

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
            *("--student.samples_per_step", "4", "--lineage.generations", "2", "--evaluation.episodes", "2"),
            *("--evaluation.curve_every_steps", "3200", "--evaluation.curve_episodes", "1"),
        ]
        return [sys.executable, script, *fixed, *small, *words]

    return command


def games(*words: str) -> Callable[[Path], list[str]]:
    """distill_atari.py with two games on one thread; their teachers lie beside the run folder."""

    def command(out: Path) -> list[str]:
        named = {}
        for game, n_actions in (("pong", 6), ("breakout", 4)):
            named[game] = str(out.parent / f"{game}.zip")
            if not Path(named[game]).exists():
                write_teacher(Path(named[game]), n_actions)
        script = str(ROOT / "scripts" / "distill_atari.py")
        fixed = ["--device", "cpu", "--threads", "1", "--checkpoint.every_seconds", "1", "--out", str(out)]
        small = [
            *("--games", json.dumps(named), "--play.steps", "2560", "--play.replay_steps", "1280"),
            *("--play.warmup_steps", "400", "--play.n_envs", "4", "--student.batch_size", "32"),
            *("--student.samples_per_step", "4", "--lineage.generations", "2", "--evaluation.episodes", "2"),
            *("--evaluation.curve_every_steps", "1600", "--evaluation.curve_episodes", "1"),
        ]
        return [sys.executable, script, *fixed, *small, *words]

    return command


def agent(*words: str) -> Callable[[Path], list[str]]:
    """distill_agent.py on CartPole on one thread, for half a minute with its kills; the teacher lies beside."""

    def command(out: Path) -> list[str]:
        teacher = out.parent / "teacher.zip"
        if not teacher.exists():
            write_cartpole_teacher(teacher)
        script = str(ROOT / "scripts" / "distill_agent.py")
        fixed = ["--device", "cpu", "--threads", "1", "--checkpoint.every_seconds", "1", "--out", str(out)]
        small = [
            *("--teacher.path", str(teacher), "--env", "CartPole-v1", "--play.steps", "24000"),
            *("--play.replay_steps", "8000", "--lineage.generations", "2", "--evaluation.episodes", "20"),
        ]
        return [sys.executable, script, *fixed, *small, *words]

    return command


def from_play(*words: str) -> Callable[[Path], list[str]]:
    """distill_agent.py from a data set of play, which lies beside the run folder."""

    def command(out: Path) -> list[str]:
        file = out.parent / "play.safetensors"
        if not file.exists():
            once = ("--lineage.generations", "1", "--evaluation.episodes", "1", "--save_dataset", str(file))
            subprocess.run(agent(*words, *once)(out.parent / "saved"), check=True, capture_output=True)
        return agent(*words, "--dataset", str(file))(out)

    return command


def teacher(*words: str) -> Callable[[Path], list[str]]:
    """train_teacher.py on one thread, with students that learn meanwhile, for over a minute with its kills."""

    def command(out: Path) -> list[str]:
        script = str(ROOT / "scripts" / "train_teacher.py")
        fixed = ["--device", "cpu", "--threads", "1", "--game", "breakout", "--out", str(out)]
        small = [
            *("--steps", "2400", "--n_envs", "8", "--batch_size", "16", "--buffer_size", "2000", "--episodes", "2"),
            *("--learning_starts", "200", "--exploration_steps", "400", "--exploration_final", "0.5"),  # games end soon
            *("--cooldown_steps", "800"),
            *("--checkpoint_steps", "80", "--students", "[net3, net2]", "--student.best_games", "3"),
            *("--student.samples_per_step", "4"),
            *("--student.curve_every_steps", "1200", "--student.curve_episodes", "1"),
        ]
        return [sys.executable, script, *fixed, *small, *words]

    return command


def modules(*words: str) -> Callable[[Path], list[str]]:
    """own_modules.py, a lineage of one's own modules, for half a minute with its kills."""
    return lambda out: [sys.executable, str(ROOT / "tests" / "crashes" / "own_modules.py"), str(out), *words]


def images(*words: str) -> Callable[[Path], list[str]]:
    """distill_images.py on one thread; the pictures lie beside the run folder, and one cannot be decoded."""

    def command(out: Path) -> list[str]:
        folder = out.parent / "pictures"
        if not folder.exists():
            for part in ("train", "val"):
                write_pictures(folder / part, 100)
            broken = folder / "train" / CLASSES[0] / "7.jpg"
            broken.write_bytes(broken.read_bytes()[:-300])
        script = str(ROOT / "tests" / "image_folders" / "sharing.py")  # names the operators that torchvision may lack
        fixed = ["--device", "cpu", "--threads", "1", "--checkpoint.every_seconds", "1", "--out", str(out)]
        small = [
            *("--data.root", str(folder), "--teacher.network", NETWORK, "--data.image_size", "32"),
            *("--data.broken", "skip", "--data.validation_images", "50", "--training.batch_size", "16"),
            *("--training.epochs", "8", "--training.log_every_steps", "5", "--lineage.generations", "2"),
        ]
        return [sys.executable, script, *fixed, *small, *words]

    return command


def write_cartpole_teacher(path: Path) -> None:
    """An untrained agent: its games end soon, so that runs are not all evaluation."""
    from stable_baselines3 import DQN

    path.parent.mkdir(parents=True, exist_ok=True)
    DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu").save(path)


def write_teacher(path: Path, n_actions: int = 6) -> None:
    """An untrained agent: it loses Pong quickly, so that runs are not all evaluation."""
    import numpy as np
    import torch
    from gymnasium import spaces

    from polydistill_agents.files.sb3_zip import write_dqn_zip
    from polydistill_agents.networks.nature import SIZES, build_network

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    write_dqn_zip(path, build_network(spaces.Box(0, 255, (4, 84, 84), np.uint8), n_actions, SIZES["net3"]))


def assert_same_agents(expected: Path, found: Path, named: str = "student.zip", products: tuple[str, ...] = ()) -> None:
    """As :func:`assert_same_run`; of the zips, of which one is ``named``, every tensor."""
    assert_same_run(expected, found, products=products)
    zips = {path.name for path in expected.glob("*.zip")}
    assert named in zips
    assert_same_tensors(expected, found, zips)


def assert_same_teachers(expected: Path, found: Path) -> None:
    """Every tensor of the zips and of the newest checkpoints, and what the cards say of the games."""
    import json

    from polydistill.runs.checkpoint import Checkpoints

    assert (found / "config.yaml").read_bytes() == (expected / "config.yaml").read_bytes()
    assert_same_tensors(expected, found, {"teacher.zip", "net2.zip", "net3.zip"})
    for name in ("teacher.json", "net2.json", "net3.json"):
        cards = [json.loads((folder / name).read_text(encoding="utf-8")) for folder in (expected, found)]
        for key in ("sha256", "steps", "evaluation"):
            assert cards[0][key] == cards[1][key], (name, key)
    states = [Checkpoints(folder / "checkpoints", kind="teacher").latest() for folder in (expected, found)]
    assert states[0] is not None
    for key in ("generators", "counters"):
        assert states[0][key] == states[1][key], key  # type: ignore[index]
    assert states[0]["companion"]["group"]["updates"] > 0


def assert_same_tensors(expected: Path, found: Path, zips: set[str]) -> None:
    """Of these zips, which are all there; a zip carries the time of its writing."""
    import torch

    from polydistill_agents.files.sb3_zip import read_agent

    for folder in (expected, found):
        assert {path.name for path in folder.glob("*.zip")} == zips
    for name in zips:
        one, other = (read_agent(folder / name).weights for folder in (expected, found))
        assert one.keys() == other.keys(), name
        assert all(torch.equal(one[key], other[key]) for key in one), name


SEVERAL_AGENTS = functools.partial(
    assert_same_agents, named="generation_2_breakout.zip", products=("generation_*.safetensors",)
)
CLASSIFIERS = functools.partial(
    assert_same_run, products=("generation_*.safetensors", "generation_*.json", "generation_*_correct.npz")
)
MODULE_FILES = functools.partial(assert_same_run, products=("generation_*.safetensors",))

CASES = {
    "cifar": {
        "last weights, ban": Case(cifar("--training.epochs", "26"), CLASSIFIERS, 5, 6),
        "best weights, dkpp": Case(
            cifar(
                *("--training.epochs", "26", "--evaluation.selection", "best_val", "--precision", "auto"),
                *("--student.objective", "dkpp", "--checkpoint.every_steps", "3"),
            ),
            CLASSIFIERS,
            5,
            6,
        ),
    },
    "images": {
        "ban, augmented by the run itself": Case(
            images("--precision", "float32", "--data.workers", "0", "--augmentation.auto_augment", "rand-m9-mstd0.5"),
            CLASSIFIERS,
            5,
            6,
        ),
        "best mean of the weights, a worker": Case(
            images(
                *("--precision", "auto", "--data.workers", "1", "--evaluation.selection", "best_val"),
                *("--training.ema", "0.9", "--student.objective", "dkpp", "--checkpoint.every_steps", "3"),
            ),
            CLASSIFIERS,
            5,
            6,
        ),
    },
    "modules": {
        "augmented, a mean of the weights": Case(modules("40"), MODULE_FILES, 5, 6),
        "a teacher's scores on disk": Case(modules("40", "cached"), MODULE_FILES, 5, 6),
    },
    "agent": {
        "CartPole, both act": Case(agent("--play.beta", "0.5"), assert_same_agents, 10, 6),
        "CartPole, both acted in a data set": Case(from_play("--play.beta", "0.5"), assert_same_agents, 5, 6),
        "CartPole, ensembles of Q-values": Case(  # many games, so that kills fall into them
            agent(
                *("--student.objective", "policy_mse", "--lineage.generations", "3", "--play.steps", "4800"),
                *("--play.replay_steps", "4800", "--evaluation.episodes", "1500"),
            ),
            assert_same_agents,
            5,
            6,
        ),
    },
    "teacher": {
        "breakout, two students meanwhile": Case(teacher("--precision", "float32"), assert_same_teachers, 10, 6),
    },
    "atari": {
        "policy_kl, a smaller student": Case(
            atari("--precision", "float32", "--student.size", "net3"), assert_same_agents, 5, 6
        ),
        "policy_mse, machado": Case(
            atari(
                *("--precision", "auto", "--student.objective", "policy_mse", "--student.size", "net2"),
                *("--evaluation.protocol", "machado", "--checkpoint.every_steps", "512"),
            ),
            assert_same_agents,
            5,
            6,
        ),
        "two games, both act, by their gaps": Case(
            games(
                *("--precision", "auto", "--student.size", "net2", "--student.weighting", "gap"),
                *("--play.beta_end", "0", "--student.averaging", "0.1"),
            ),
            SEVERAL_AGENTS,
            5,
            6,
        ),
    },
}


def undisturbed(script: str, name: str, folder: Path) -> float:
    """The run that nobody disturbs: the seconds that it takes."""
    command = CASES[script][name].command
    seconds = run_killed(command, folder / "undisturbed", random.Random(), kills=0, longest_seconds=0.0).seconds
    print(f"{script}, {name}: undisturbed in {seconds:.0f} s", file=sys.stderr, flush=True)
    return seconds


def killed(script: str, name: str, folder: Path, index: int, *, seconds: float, seed: int) -> Tally:
    """A run that is killed, and must end as the one that took ``seconds`` undisturbed."""
    case, rng = CASES[script][name], random.Random(f"{seed} {script}, {name} {index}")
    # three quarters of the undisturbed run's time on average: all kills fall into the run, though it may be faster now
    longest = max(1.5 * seconds / (case.kills + 1), 1.0)
    out = folder / f"killed_{index}"
    found = run_killed(case.command, out, rng, kills=case.kills, longest_seconds=longest)
    case.compare(folder / "undisturbed", out)
    shutil.rmtree(out)
    print(
        f"{script}, {name}: run {index + 1} of {case.runs} survived {found.kills} kills ({found.while_writing} while "
        f"a file was being written) in {found.seconds:.0f} s, and is the same",
        file=sys.stderr,
        flush=True,
    )
    return found


def crash(scripts: list[str], folder: Path, *, seed: int, jobs: int) -> dict[str, list[Tally]]:
    """What the runs of each script went through.

    Raises:
        AssertionError: one ended with an error, or with other files than the undisturbed one.
    """
    cases = [(script, name) for script in scripts for name in CASES[script]]
    folders = {case: folder / case[0] / "".join(filter(str.isalnum, case[1])) for case in cases}
    for each in folders.values():
        each.mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(jobs)
    try:
        seconds = dict(zip(cases, pool.map(lambda case: undisturbed(*case, folders[case]), cases), strict=True))
        runs = [(case, index) for case in cases for index in range(CASES[case[0]][case[1]].runs)]
        found = list(
            pool.map(lambda run: killed(*run[0], folders[run[0]], run[1], seconds=seconds[run[0]], seed=seed), runs)
        )
    except BaseException:  # of one of them, or Ctrl-C: the others end too
        pool.shutdown(wait=False, cancel_futures=True)
        end_all()
        raise
    finally:
        pool.shutdown()
    return {
        script: [tally for ((of, _), _), tally in zip(runs, found, strict=True) if of == script] for script in scripts
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", help=f"of {', '.join(CASES)}; none: all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="where to run; default: a temporary one")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=int, default=cores, help=f"runs at a time; default: one per core ({cores})")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the runs in progress are ended too
    scripts = list(dict.fromkeys(chosen.scripts)) or list(CASES)
    unknown = set(scripts) - set(CASES)
    if unknown:
        parser.error(f"no script {', '.join(sorted(unknown))}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        found = crash(scripts, chosen.folder or Path(temporary), seed=chosen.seed, jobs=chosen.jobs)
    for script, tallies in found.items():
        kills, while_writing = (sum(getattr(tally, what) for tally in tallies) for what in ("kills", "while_writing"))
        print(f"{script}: {len(tallies)} runs survived {kills} kills, {while_writing} of them while a file was being "
              f"written; the shortest took {min(tally.seconds for tally in tallies):.0f} s")  # fmt: skip
    print(f"{(time.monotonic() - started) / 60:.0f} minutes")
    if too_few := [script for script, tallies in found.items() if sum(tally.kills for tally in tallies) < FEWEST_KILLS]:
        sys.exit(f"fewer than {FEWEST_KILLS} kills of {' and '.join(too_few)}: its runs end too soon")


if __name__ == "__main__":
    main()
