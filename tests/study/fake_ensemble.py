"""One ensemble of the world of these tests: ``fake_ensemble.py --config FILE --seed N --out FOLDER``.

Its accuracy is the mean of its members'.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml


def main() -> None:
    """Do what the words say."""
    words = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    out = Path(words["--out"])
    config: dict[str, Any] = yaml.safe_load(Path(words["--config"]).read_text())
    config["seed"] = int(words["--seed"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    with open(out / "starts.txt", "a") as file:
        file.write("start\n")
    members = []
    for name in config["members"]:
        summary = json.loads((out / name.format(seed=config["seed"]) / "summary.json").read_text())
        members.append(summary["generations"][-1])
    accuracy = sum(member["metrics"]["test_accuracy"] for member in members) / len(members)
    ensembles = [{"members": [0, 1], "metrics": {"test_accuracy": accuracy}}]
    known = {"schema": 1, "kind": "cifar", "wall_seconds": 1.0, "config": config, "members": members}
    (out / "summary.json").write_text(json.dumps({**known, "generations": [], "ensembles": ensembles}))


if __name__ == "__main__":
    main()
