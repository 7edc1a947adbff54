"""Mutated teachers' files by the thousand, each read in an isolated process: a network or one line, and nothing else.

    python -m tests.fuzz.fuzz --files 20000

Prints how many files of each kind ended how, and every fault: a crash, more than five seconds, a gibibyte of memory,
another exception than our own, an import, a file written, a payload executed. Exits 1 if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import selectors
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.mutations import mutate
from tests.fuzz.seeds import make_seeds

SECONDS_PER_FILE = 5.0
SECONDS_TO_START = 120.0
SLOW = "FAULT no answer"
ROOT = Path(__file__).resolve().parents[2]
READER = Path(__file__).with_name("worker.py")


class Report(NamedTuple):
    """What came of it: ``(kind, outcome) -> files``, ``mutation -> files``, and the faults."""

    outcomes: Counter[tuple[str, str]]
    mutations: Counter[str]
    faults: list[str]
    slowest_seconds: float


class Worker:
    """The reading process; a new one is started after a crash or a file that takes too long."""

    def __init__(self, seeds: Path, script: Path = READER) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), str(seeds)]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in close(); a pipe that nobody reads would fill
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=environment, cwd=seeds
        )
        self.selector = selectors.DefaultSelector()
        assert self.process.stdout is not None
        self.selector.register(self.process.stdout, selectors.EVENT_READ)
        for _ in seeds.iterdir():
            if (line := self.wait(SECONDS_TO_START)) != "ready":
                raise RuntimeError(line)

    def wait(self, seconds: float) -> str:
        """The next line of answer."""
        assert self.process.stdout is not None
        if not self.selector.select(seconds):
            self.close()
            return f"{SLOW} within {seconds:.0f} seconds"
        line = self.process.stdout.readline().decode()
        if not line:
            self.errors.seek(0)
            last = self.errors.read().decode(errors="replace").strip().splitlines()[-1:]
            self.close()
            return f"FAULT the process ended with code {self.process.returncode}: {last}"
        return line.rstrip("\n")

    def ask(self, path: Path) -> str:
        """The outcome of one file."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{path}\n".encode())
        self.process.stdin.flush()
        return self.wait(SECONDS_PER_FILE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.selector.close()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def fuzz(files: int, seed: int = 0, keep: Path | None = None) -> Report:
    """Read ``files`` mutated files and count what came of each.

    Args:
        files: how many.
        seed: file k is the same for the same seed.
        keep: folder for the files that made a fault.
    """
    report = Report(Counter(), Counter(), [], 0.0)
    slowest = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder, sound = Path(name, "files"), make_seeds()
        seeds, marker = Path(name, "seeds"), Path(name, "executed")
        folder.mkdir()
        seeds.mkdir()
        for kind, content in sound.items():
            Path(seeds, kind).write_bytes(content)
        worker = Worker(seeds)
        kinds = sorted(sound)
        for number in range(files):
            kind = kinds[number % len(kinds)]
            content, mutation = mutate(kind, sound[kind], random.Random(f"{seed} {number}"), marker)
            path = folder / kind
            path.write_bytes(content)
            started = time.perf_counter()
            outcome = worker.ask(path)
            if outcome.startswith(SLOW):  # of a busy machine, once; of a file that hangs, twice
                worker = Worker(seeds)
                started = time.perf_counter()
                outcome = worker.ask(path)
            slowest = max(slowest, time.perf_counter() - started)
            if marker.exists():
                outcome = "FAULT a payload was executed"
                marker.unlink()
            ending = "network" if outcome == "network" else "fault" if outcome.startswith("FAULT") else "refused"
            report.outcomes[kind, ending] += 1
            report.mutations.update(mutation.split("+"))
            if ending == "fault":
                report.faults.append(f"{kind} {number} ({mutation}): {outcome}")
                if keep is not None:
                    Path(keep, f"{number}-{kind}").write_bytes(content)
                if worker.process.poll() is not None:
                    worker = Worker(seeds)
        worker.close()
    return report._replace(slowest_seconds=slowest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000, help="how many to read (default: 20000)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--keep", type=Path, help="folder for the files that made a fault")
    arguments = parser.parse_args()
    started = time.perf_counter()
    warnings.simplefilter("ignore")  # zipfile's and torch's, about the odd things that mutations make
    report = fuzz(arguments.files, arguments.seed, arguments.keep)
    endings = ("network", "refused", "fault")
    print(f"{'kind':20}" + "".join(f"{ending:>10}" for ending in endings))
    for kind in sorted({kind for kind, _ in report.outcomes}):
        print(f"{kind:20}" + "".join(f"{report.outcomes[kind, ending]:>10,}" for ending in endings))
    print("\nmutations: " + ", ".join(f"{name or 'none'} {count:,}" for name, count in report.mutations.most_common()))
    print(f"{arguments.files:,} files in {time.perf_counter() - started:.0f} s, the slowest in "
          f"{report.slowest_seconds:.2f} s; {len(report.faults)} faults")  # fmt: skip
    for fault in report.faults:
        print(fault)
    raise SystemExit(bool(report.faults))


if __name__ == "__main__":
    main()
