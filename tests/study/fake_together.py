"""Several runs of the world of these tests in one process: ``fake_together.py FILE``; FILE has the words of each."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from tests.study import fake_run


def main() -> None:
    """Do what the words say, one after the other."""
    codes = []
    for log, words in yaml.safe_load(Path(sys.argv[1]).read_text()).items():
        config = yaml.safe_load(Path(words[1]).read_text())
        if config["student"]["does"] == "die" and config["lineage"]["generations"]:
            os.kill(os.getpid(), signal.SIGKILL)
        sys.argv = ["fake_run.py", *words]
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w") as file:
            sys.stderr = file
            try:
                fake_run.main()
                codes.append(0)
            except SystemExit as end:
                codes.append(end.code)
            finally:
                sys.stderr = sys.__stderr__
    raise SystemExit(int(any(codes)))


if __name__ == "__main__":
    main()
