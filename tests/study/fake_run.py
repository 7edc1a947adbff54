"""One run of the world of these tests: ``fake_run.py --config FILE --seed N --out FOLDER [--teacher.path FILE]``.

It keeps a run folder as a real one does (config.yaml, a lock, summary.json) and does what ``student.does`` says. Each
start leaves a line in ``starts.txt``; a slow run keeps how far it came in ``steps.txt`` and goes on from there, and in
``pid.txt`` which process it is.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from polydistill.runs.lock import FolderLock

STEPS, STEP_SECONDS = {"learn slowly": 40, "learn very slowly": 160}, 0.05
ENOSPC_WORDS = os.strerror(28)


def main() -> None:
    """Do what the words say."""
    words = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    out = Path(words["--out"])
    config: dict[str, Any] = yaml.safe_load(Path(words["--config"]).read_text())
    config["seed"] = int(words["--seed"])
    config["teacher"]["path"] = words.get("--teacher.path", config["teacher"]["path"])
    config["teacher"]["more"] = json.loads(words.get("--teacher.more", json.dumps(config["teacher"]["more"])))
    config["data"]["root"] = words.get("--data.root", config["data"]["root"])
    out.mkdir(parents=True, exist_ok=True)
    with FolderLock(out):
        (out / "config.yaml").write_text(yaml.safe_dump(config))
        with open(out / "starts.txt", "a") as file:
            file.write(f"{time.monotonic()} {os.environ['OMP_NUM_THREADS']}\n")
        act(config, out)
        finish(config, out)


def act(config: dict[str, Any], out: Path) -> None:
    """What its student does, in every seed or in ``student.seed`` alone."""
    does, only = config["student"]["does"], config["student"]["seed"]
    if only not in (None, config["seed"]) or not config["lineage"]["generations"]:
        return
    if does == "fail":
        print("some words\nerror: the loss is not finite", file=sys.stderr)
        raise SystemExit(2)
    if does == "fail of the teacher":
        print(f"error: no file {config['teacher']['path']}", file=sys.stderr)
        raise SystemExit(2)
    if does == "fall":
        raise RuntimeError("a bug")
    if does == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if does == "fill the disk":
        print(f"error: cannot write x: {ENOSPC_WORDS}", file=sys.stderr)
        raise SystemExit(2)
    if does in STEPS:
        learn_slowly(out, STEPS[does])


def learn_slowly(out: Path, steps: int) -> None:
    """Twenty steps a second; SIGTERM saves."""
    path = out / "steps.txt"
    step = int(path.read_text()) if path.exists() else 0

    def stop(number: int, frame: FrameType | None) -> None:
        path.write_text(str(step))
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    path.write_text(str(step))  # now it can be stopped
    (out / "pid.txt").write_text(str(os.getpid()))
    while step < steps:
        step += 1
        time.sleep(STEP_SECONDS)
    path.write_text(str(step))


def finish(config: dict[str, Any], out: Path) -> None:
    """Write product and summary; the accuracy is made of seed, bonus and teacher."""
    path = config["teacher"]["path"]
    taught = json.loads(Path(path).read_text()) if path else {"sha256": "none", "accuracy": 0.5}
    generations = [{"sha256": taught["sha256"], "metrics": {"test_accuracy": taught["accuracy"]}}]
    accuracy = taught["accuracy"] + config["seed"] / 100
    for generation in range(1, config["lineage"]["generations"] + 1):
        accuracy += config["student"]["bonus"]
        generations.append({"sha256": f"{out}{generation}", "metrics": {"test_accuracy": accuracy}})
    if not path:
        generations[0] = {"sha256": str(out), "metrics": {"test_accuracy": accuracy}}
    product = {"sha256": generations[-1]["sha256"], "accuracy": accuracy}
    (out / f"product_{len(generations) - 1}.json").write_text(json.dumps(product))
    summary = {"schema": 1, "kind": "cifar", "wall_seconds": 1.0, "config": config, "generations": generations}
    (out / "summary.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    main()
