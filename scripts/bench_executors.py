"""Measure what a place of execution costs beside the runs: a study of made-up runs of a second each.

    python scripts/bench_executors.py --executor ray --json scripts/measurements/bench_executors_ray.json
    python scripts/bench_executors.py --executor local --runs 200

The runs sleep and write what a run of a study leaves. All else is real: the plan, the order in which teachers and arms
start, the folders, results.csv. The overhead of a run is the time in which a worker has none: workers x time by the
clock / runs - seconds of a run, from its start to its end. The limit stands beside it: 50 ms. What the study's own
process computes for a run says how many runs a second it could serve, on however many computers.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("study")

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from polydistill.errors import require_at_least, run_script

LIMIT_MS = 50.0
ARMS = {f"arm_{letter}": {"student.bonus": bonus} for letter, bonus in (("a", 0.0), ("b", 0.1), ("c", 0.2))}
MADE_UP_RUN = "--made_up_run"


@dataclass(frozen=True)
class BenchConfig:
    """What is measured.

    Args:
        executor: the place: local, or ray, a cluster of two nodes on this computer.
        runs: in all, a teacher and three arms for each seed.
        seconds: that a run sleeps.
        workers: at once.
        json: file for the raw measurements; empty: none.
    """

    executor: Literal["local", "ray"] = "ray"
    runs: int = 1000
    seconds: float = 1.0
    workers: int = 2
    json: str = ""

    def __post_init__(self) -> None:
        require_at_least(1, self, "runs", "workers")


@dataclass(frozen=True)
class MadeUpTeacher:
    path: str = ""
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class MadeUpStudent:
    bonus: float = 0.0
    repeat: int = 0


@dataclass(frozen=True)
class MadeUpLineage:
    generations: int = 1


@dataclass(frozen=True)
class MadeUpConfig:
    """What a study asks of a world's config, and how long a run sleeps."""

    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    precision: str = "float32"
    seconds: float = 1.0
    teacher: MadeUpTeacher = field(default_factory=MadeUpTeacher)
    student: MadeUpStudent = field(default_factory=MadeUpStudent)
    lineage: MadeUpLineage = field(default_factory=MadeUpLineage)

    def resolve(self, stored: Mapping[str, Any] | None = None) -> "MadeUpConfig":
        return self


def made_up_run(words: list[str]) -> None:
    """Sleep, and leave what a run leaves."""
    given = dict(zip(words[::2], words[1::2], strict=True))
    out = Path(given["--out"])
    config = yaml.safe_load(Path(given["--config"]).read_text(encoding="utf-8"))
    config["seed"] = int(given["--seed"])
    config["teacher"]["path"] = path = given.get("--teacher.path", "")
    time.sleep(config["seconds"])
    accuracy = json.loads(Path(path).read_text(encoding="utf-8")) if path else 0.5
    generations = [{"sha256": path, "metrics": {"test_accuracy": accuracy}}]
    if path:
        accuracy += config["student"]["bonus"] + config["seed"] / 10_000
        generations.append({"sha256": str(out), "metrics": {"test_accuracy": accuracy}})
    generations[-1]["sha256"] = product = str(out / f"product_{len(generations) - 1}.json")
    out.mkdir(parents=True, exist_ok=True)
    Path(product).write_text(json.dumps(accuracy), encoding="utf-8")
    (out / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    summary = {"schema": 1, "kind": "cifar", "wall_seconds": config["seconds"], "config": config}
    (out / "summary.json").write_text(json.dumps(summary | {"generations": generations}), encoding="utf-8")


def measure(config: BenchConfig, out: Path) -> dict[str, Any]:
    """Run the study in ``out``; times in seconds, memory of this process in MiB."""
    from polydistill.runs.interruption import StopSignals
    from polydistill.study.arms import make_plan
    from polydistill.study.config import StudyConfig
    from polydistill.study.executors.interface import Outcome
    from polydistill.study.executors.local import LocalExecutor
    from polydistill.study.executors.ray_cluster import RayExecutor
    from polydistill.study.executors.settings import RayConfig
    from polydistill.study.memory import resident_bytes
    from polydistill.study.plan import PLAN, write_plan
    from polydistill.study.runner import Runner
    from polydistill.study.worlds import World

    world = World(
        name="cifar",
        config_class=MadeUpConfig,
        default=None,
        command=(sys.executable, str(Path(__file__).resolve()), MADE_UP_RUN),
        product="product_{last}.json",
        trains_teachers=True,
    )
    seeds = max(2, round(config.runs / (1 + len(ARMS))))
    plan = make_plan(
        StudyConfig(world="cifar", arms=ARMS, seeds=seeds, settings={"seconds": config.seconds}), world, None
    )
    write_plan(out, plan)
    ended: list[Outcome] = []
    memory: list[float] = []
    processor: list[float] = []  # seconds that this process has computed

    def watch(executor: Any) -> Any:
        wait = executor.wait

        def watched(seconds: float) -> list[Outcome]:
            outcomes: list[Outcome] = wait(seconds)
            ended.extend(outcomes)
            memory.extend([resident_bytes(os.getpid()) / 2**20] * len(outcomes))
            processor.extend([time.process_time()] * len(outcomes))
            return outcomes

        executor.wait = watched
        return executor

    def run(executor: Any) -> float:
        with StopSignals() as stop, watch(executor):
            started = time.monotonic()
            runner = Runner(plan, world, out, executor)
            runner.run(stop)
            assert all(record.status == "done" for record in runner.sorted_records), "a run failed"
            return time.monotonic() - started

    if config.executor == "ray":
        from ray.cluster_utils import Cluster

        nodes = {"num_cpus": config.workers // 2, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=nodes)
        cluster.add_node(num_cpus=config.workers - config.workers // 2)
        try:
            wall = run(RayExecutor(RayConfig(address=cluster.address), out / PLAN, config.workers))
        finally:
            cluster.shutdown()
    else:
        wall = run(LocalExecutor(config.workers))
    own = sum(outcome.seconds for outcome in ended) / len(ended)
    tenth = len(memory) // 10

    def computed(first: int, last: int) -> float:
        """Milliseconds for a run, from the end of one to the end of another."""
        return 1000 * (processor[last] - processor[first]) / (last - first)

    return {
        "runs": len(ended),
        "wall_seconds": wall,
        "seconds_of_a_run": own,
        "overhead_ms": 1000 * (config.workers * wall / len(ended) - own),
        "own_ms": computed(0, len(ended) - 1),
        "own_ms_of_the_first_tenth": computed(0, tenth),
        "own_ms_of_the_last_tenth": computed(len(ended) - 1 - tenth, len(ended) - 1),
        "memory_mib_after_a_tenth": memory[tenth],
        "memory_mib_at_the_end": memory[-1],
        "bytes_of_results_csv": (out / "results.csv").stat().st_size,
    }


@run_script
def main(argv: list[str] | None = None) -> None:
    """Measure, and print."""
    from polydistill.config.parsing import parse
    from polydistill.cores import say_if_loaded
    from polydistill.disk import atomic_write
    from polydistill.provenance import git_state, hardware, versions
    from polydistill.runs import format_table

    config = parse(
        BenchConfig, argv, program="python scripts/bench_executors.py", description=__doc__ or "", default_name=None
    ).config
    say_if_loaded()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(config, Path(folder))
    rows = [
        ["runs", f"{found['runs']:,}"],
        ["seconds of a run", f"{found['seconds_of_a_run']:.3f}"],
        ["overhead of a run, ms", f"{found['overhead_ms']:.1f}"],
        ["limit, ms", f"{LIMIT_MS:.0f}"],
        ["the study's own work for a run, ms", f"{found['own_ms']:.1f}"],
        ["of the last tenth", f"{found['own_ms_of_the_last_tenth']:.1f}"],
        ["memory after a tenth, MiB", f"{found['memory_mib_after_a_tenth']:.0f}"],
        ["memory at the end, MiB", f"{found['memory_mib_at_the_end']:.0f}"],
    ]
    print(format_table([config.executor, "measured"], rows))
    if config.json:
        raw = {"config": dataclasses.asdict(config), **found}
        raw |= {"hardware": hardware(), "versions": versions("ray", "submitit"), "git": git_state()}
        atomic_write(Path(config.json), (json.dumps(raw, indent=1) + "\n").encode())


if __name__ == "__main__":
    if sys.argv[1:2] == [MADE_UP_RUN]:
        made_up_run(sys.argv[2:])
    else:
        main()
