"""A short form of `make fuzz`: whatever a file holds, a network or one line comes of it."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import pytest

from tests.fuzz.fuzz import Worker, fuzz
from tests.fuzz.mutations import Payload, mutate
from tests.fuzz.seeds import make_seeds

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX limits of memory")


def test_damaged_and_hostile_files_end_as_a_network_or_as_one_line() -> None:
    report = fuzz(520, seed=1)
    assert report.faults == []
    kinds = {kind for kind, _ in report.outcomes}
    zips = {"dqn.zip", "dqn-cnn.zip", "qrdqn.zip", "ppo.zip", "a2c.zip"}
    zips |= {"ppo-table.zip", "a2c-counts.zip", "maskable.zip", "recurrent.zip"}
    assert kinds == zips | {"acktr.pth", "acktr.safetensors", "student.safetensors", "statistics.pkl"}
    assert report.mutations["damage_space"] > 10
    assert all(report.outcomes[kind, "refused"] >= 15 for kind in kinds)
    assert sum(count for (_, ending), count in report.outcomes.items() if ending == "network") > 20, "some are harmless"


def test_a_mutation_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for kind, content in make_seeds().items():
        first, second = (mutate(kind, content, random.Random(5), tmp_path / "x") for _ in range(2))
        assert first[1] == second[1]


def test_the_proof_of_concept_works_where_someone_unpickles(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


WOULD_BE_FAULTS = {
    "import": "import module_that_is_not_there",
    "write": "open({marker!r}, 'w').close()",
    "execute": "exec('1')",
    "process": "import subprocess; subprocess.run(['true'])",
    "exception": "raise AttributeError('a bug')",
    "memory": "bytearray(2 * 2**30)",
    "hang": "import time; time.sleep(60)",
    "crash": "import os; os.abort()",
}
READER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.fuzz import worker
sound = worker.read
def bad(path):
    faults.get(Path(path).stem, lambda: None)()
    return sound(path)
{functions}
faults = dict({names})
worker.read = bad
worker.main()
"""


def test_the_watchman_notices_what_no_reader_may_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, root = tmp_path / "marker", Path(__file__).parents[2]
    bodies = {name: body.format(marker=os.fspath(marker)) for name, body in WOULD_BE_FAULTS.items()}
    functions = "\n".join(f"def {name}_():\n    {body}" for name, body in bodies.items())
    script = tmp_path / "reader.py"
    names = ", ".join(f"{name}_={name}_" for name in bodies)
    script.write_text(READER.format(root=os.fspath(root), functions=functions, names=names))
    (tmp_path / "seeds").mkdir()
    sound = make_seeds()["dqn.zip"]
    (tmp_path / "seeds" / "dqn.zip").write_bytes(sound)
    monkeypatch.setattr("tests.fuzz.fuzz.SECONDS_PER_FILE", 3.0)
    worker = Worker(tmp_path / "seeds", script)
    for name in bodies:
        for file in ("good", f"{name}_"):
            (tmp_path / f"{file}.zip").write_bytes(sound)
        if worker.process.poll() is not None:
            worker = Worker(tmp_path / "seeds", script)
        assert worker.ask(tmp_path / "good.zip") == "network", name
        assert worker.ask(tmp_path / f"{name}_.zip").startswith("FAULT"), name
    worker.close()
