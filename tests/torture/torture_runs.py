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


CIFAR_FILES = functools.partial(assert_same_run, products=("generation_*.safetensors", "generation_*.json"))

CASES = {
    "cifar": {
        "last weights, ban": Case(cifar("--training.epochs", "20"), CIFAR_FILES, 5, 6),
        "best weights, dkpp, bfloat16": Case(
            cifar(
                *("--training.epochs", "20", "--evaluation.selection", "best_val", "--precision", "bfloat16"),
                *("--student.objective", "dkpp", "--checkpoint.every_steps", "3"),
            ),
            CIFAR_FILES,
            5,
            6,
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
