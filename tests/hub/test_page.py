"""What docs/hub.md shows runs, against a Hub of the test's own."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import PPO

from polydistill.hub.readme import is_ours
from tests.hub.made_runs import classifier_run
from tests.hub.server import Hub

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hub.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
SMALL = [
    *("--play.steps", "256", "--play.replay_steps", "256", "--play.warmup_steps", "64", "--student.batch_size", "16"),
    *("--student.samples_per_step", "1", "--evaluation.episodes", "3", "--evaluation.curve_every_steps", "0"),
    *("--threads", "1", "--device", "cpu"),
]
# huggingface_hub's own: its client of Git LFS hands httpx2 an open file as `data`
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning:httpx2")


@pytest.mark.usefixtures("torch_threads_restored")
def test_the_page_runs(
    hub: Hub,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0).save("ppo.zip")
    commands = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    assert len(commands) == 4
    printed = []
    for command in commands:
        _, script, *words = shlex.split(command)
        own = SMALL if script.endswith("distill_agent.py") else []
        runpy.run_path(str(root / script))["main"]([*words, *own])
        printed.append(capsys.readouterr().out)
    assert printed[0].endswith("\ncard: runs/student/README.md\n")
    assert "license: mit" in (tmp_path / "runs/student/README.md").read_text()
    assert printed[1].endswith("nothing was sent\n")
    assert "to hf://org/name (private, new):" in printed[2]
    assert printed[3].startswith("CartPole-v1, 3 full games each, protocol own, seed 0\n")
    assert printed[3].endswith("nothing has changed there\nopened as: hf://org/name\n")
    sent = hub.repositories["org/name"].files
    assert is_ours(sent["README.md"].decode())
    named = " ".join(line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `"))
    assert [name for name in sent if f"`{name}`" not in named] == []
    agents, classifiers = (text for kind, text in BLOCKS if kind == "python")
    exec(agents, found := dict[str, Any]())
    assert found["teacher"].network is not None
    hub.repositories.clear()
    classifier_run(tmp_path / "classifier")
    runpy.run_path(str(root / "scripts" / "push_to_hub.py"))["main"](["classifier", "--repo", "org/name"])
    exec(classifiers, found)
    assert found["classifier"].card["generation"] == 1


@pytest.mark.usefixtures("torch_threads_restored")
def test_a_run_that_could_not_be_pushed_does_not_begin_and_one_that_cannot_be_pushed_is_kept(
    hub: Hub,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0).save("ppo.zip")
    main = runpy.run_path(str(root / "scripts" / "distill_agent.py"))["main"]
    words = ["--teacher.path", "ppo.zip", "--env", "CartPole-v1", "--out", "run", *SMALL, "--push_to_hub", "org/name"]

    def refused() -> str:
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    hub.me["auth"]["accessToken"]["role"] = "read"
    assert refused().startswith("error: cannot push to hf://org/name: the token may only read")
    assert not (tmp_path / "run").exists(), "noticed before the hours are spent"
    hub.me["auth"]["accessToken"]["role"] = "write"
    main([*words, "--dry_run"])
    assert "the finished run would be sent to hf://org/name (public, new)\n" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.get_token", lambda: None)
        main([*words, "--dry_run"])
        told = capsys.readouterr().out
        assert "would be sent to hf://org/name (public, not looked at: there is no token)\n" in told
        assert "needs a token that may write" in refused()
    hub.fault = lambda asked: 403 if "/commit/" in asked else None
    assert refused().endswith(
        "cannot push to hf://org/name: the token may not write there; the run in run is finished and kept, and is "
        "pushed by python scripts/push_to_hub.py run --repo org/name"
    )
    assert (tmp_path / "run" / "summary.json").is_file()
    assert (tmp_path / "run" / "README.md").is_file()
    hub.fault = lambda asked: None
    main(words)
    assert "\nsent: http://127.0.0.1:" in capsys.readouterr().out
    assert "student.zip" in hub.repositories["org/name"].files
