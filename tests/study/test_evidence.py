"""polydistill.study.report.evidence: what the run folders tell beside the records."""

from __future__ import annotations

import json
from pathlib import Path

from polydistill.study.records import RunRecord
from polydistill.study.report.evidence import gather


def test_of_many_sets_of_data_there_is_a_count_and_not_a_line_each(tmp_path: Path) -> None:
    records = []
    for seed in range(5):  # which of them are held out goes by the seed
        folder = tmp_path / f"runs/ban/seed{seed}"
        folder.mkdir(parents=True)
        data = {
            "train": {"images": 30, "sha256": f"a{seed}"},
            "test": {"images": 9, "sha256": "b", "sizes_sha256": "c"},
        }
        (folder / "summary.json").write_text(json.dumps({"schema": 1, "generations": [], "data": data}))
        records.append(RunRecord("ban", seed, f"runs/ban/seed{seed}", "done"))
    assert gather(tmp_path, records).data == [
        "test: 9 inputs, sha256 b, of their sizes c",
        "train: 5 different sets, as summary.json of each run names them; the first: 30 inputs, sha256 a0",
    ]
