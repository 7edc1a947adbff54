"""Runs pushed to a Hub of this test and opened from there; and whatever may go wrong on the way, in one line each."""

from __future__ import annotations

import errno
import inspect
import io
import json
import runpy
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN

from polydistill.errors import UserError
from polydistill.hub import push
from polydistill.hub.push import check_name, open_repository
from polydistill.hub.readme import is_ours, read_readme
from polydistill.provenance import weights_sha256
from polydistill.vision import load_classifier
from polydistill.vision.config import CifarConfig, TeacherConfig
from polydistill.vision.images.data import DataConfig, Images, ImageSet
from polydistill.vision.sources import open_teacher, require_same_teacher
from polydistill_agents.teachers import as_teacher
from tests.hub.made_runs import NORMALIZATION, agent_run, classifier_run, tasks_run, teacher_run
from tests.hub.server import Hub, Repository

# huggingface_hub's own: its client of Git LFS hands httpx2 an open file as `data`
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning:httpx2")
Push = Callable[..., "types.SimpleNamespace"]
OF_AN_AGENT = ["README.md", "student.safetensors", "student.zip", "summary.json"]


@pytest.fixture
def push_to_hub(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Push:
    """Run ``scripts/push_to_hub.py ...`` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    main = runpy.run_path(str(root / "scripts" / "push_to_hub.py"))["main"]

    def run(*words: object) -> types.SimpleNamespace:
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return types.SimpleNamespace(code=code, out=out, err=err)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- there and back --------------------------------------------------------------------------------------------------


def test_a_student_is_pushed_and_opened_with_equal_weights_and_equal_play(
    hub: Hub, push_to_hub: Push, tmp_path: Path
) -> None:
    summary = agent_run(tmp_path / "run")
    done = push_to_hub("run", "--repo", "org/name", "--license", "mit")
    assert (done.code, done.err) == (0, "")
    repository = hub.repositories["org/name"]
    assert sorted(repository.files) == OF_AN_AGENT
    assert len(repository.commits) == 2, "that with which it was made, and one for everything"
    assert not repository.private
    sent = sum(map(len, repository.files.values()))
    assert "to hf://org/name (public, new):" in done.out
    assert f"{sent:,}" in done.out
    assert done.out.endswith(f"/org/name/commit/{repository.commits[-1]}\nopened as: hf://org/name\n")
    for name in ("student.zip", "student.safetensors"):
        assert repository.files[name] == (tmp_path / "run" / name).read_bytes()
    card = repository.files["README.md"].decode()
    assert is_ours(card)
    assert card.startswith("---\nlicense: mit\n")
    assert "hf_hub_download('org/name', 'student.zip')" in card
    assert "license: mit" in (read_readme(tmp_path / "run") or "")

    opened = as_teacher("hf://org/name")
    mine = as_teacher(tmp_path / "run" / "student.zip")
    assert opened.network is not None
    assert mine.network is not None
    sha256 = weights_sha256(opened.network.state_dict())
    assert sha256 == weights_sha256(mine.network.state_dict()) == summary["generations"][1]["sha256"]
    states = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(opened.network(states), mine.network(states))
    compact = as_teacher("hf://org/name/student.safetensors")
    assert compact.network is not None
    assert weights_sha256(compact.network.state_dict()) == sha256
    (stock,) = (tmp_path / "cache").rglob("student.zip")
    agent = DQN.load(stock, device="cpu")
    chosen, _ = agent.predict(states.numpy(), deterministic=True)
    assert np.array_equal(chosen, mine.network(states).argmax(dim=1).numpy())


def test_a_classifier_is_pushed_and_opened_with_equal_scores(hub: Hub, push_to_hub: Push, tmp_path: Path) -> None:
    classifier_run(tmp_path / "run")
    done = push_to_hub("run", "--repo", "jane/resnet", "--private", "true")
    assert (done.code, done.err) == (0, "")
    repository = hub.repositories["jane/resnet"]
    assert repository.private
    assert "to hf://jane/resnet (private, new):" in done.out
    both = [f"generation_{number}.{ending}" for number in (0, 1) for ending in ("json", "safetensors")]
    assert sorted(repository.files) == ["README.md", *both, "summary.json"]
    pixels = torch.randint(0, 256, (8, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for where, file in (("", "generation_1"), ("/generation_0.safetensors", "generation_0")):
        mine = load_classifier(tmp_path / "run" / f"{file}.safetensors")
        opened = load_classifier(f"hf://jane/resnet{where}")
        assert opened.card == mine.card
        assert torch.equal(opened(pixels), mine(pixels))


def test_a_classifier_on_the_hub_teaches_a_run(hub: Hub, push_to_hub: Push, tmp_path: Path) -> None:
    summary = classifier_run(tmp_path / "run")
    assert push_to_hub("run", "--repo", "org/name").code == 0
    teacher = TeacherConfig(network="resnet-8", path="hf://org/name")
    config = CifarConfig(data=DataConfig(name="cifar10", made_up=200, validation_images=20), teacher=teacher)
    blank = ImageSet(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))
    images = Images(blank, blank, blank, NORMALIZATION, 10)
    assert open_teacher(config, images, "cpu").card["generation"] == 1
    require_same_teacher(config, summary["generations"][1]["sha256"])
    with pytest.raises(UserError, match="holds other weights"):
        require_same_teacher(config, summary["generations"][0]["sha256"])


def test_each_task_of_a_student_of_several_is_opened_by_its_name(hub: Hub, push_to_hub: Push, tmp_path: Path) -> None:
    tasks_run(tmp_path / "run")
    assert push_to_hub("run", "--repo", "org/name").code == 0
    with pytest.raises(UserError, match=r"holds 2 files \.zip; choose one: hf://org/name/generation_1_light\.zip"):
        as_teacher("hf://org/name")
    assert as_teacher("hf://org/name/generation_1_light.zip").network is not None


def test_nothing_that_is_sent_tells_of_the_machine(
    hub: Hub, push_to_hub: Push, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for make in (agent_run, classifier_run, tasks_run, teacher_run):
        name = make.__name__
        assert "jane" in str(make(tmp_path / "secret folder" / name))
        assert push_to_hub(tmp_path / "secret folder" / name, "--repo", f"org/{name}").code == 0
        for file, content in hub.repositories[f"org/{name}"].files.items():
            parts = [content]
            if file.endswith(".zip"):
                archive = zipfile.ZipFile(io.BytesIO(content))
                parts = [archive.read(member) for member in archive.namelist()]
            for part in parts:
                assert b"jane" not in part, file
                assert b"secret" not in part, file
                assert str(Path.home()).encode() not in part or str(Path.home()) == "/", file
    told = json.loads(hub.repositories["org/agent_run"].files["summary.json"])
    assert told["config"]["teacher"]["path"] == "ppo.zip"
    assert told["generations"][1]["metrics"]["score_mean"] == 92.0


def test_a_second_push_changes_what_has_changed_and_else_nothing(hub: Hub, push_to_hub: Push, tmp_path: Path) -> None:
    summary = agent_run(tmp_path / "run")
    assert push_to_hub("run", "--repo", "hf://org/name").code == 0
    commits = [*hub.repositories["org/name"].commits]
    again = push_to_hub("run", "--repo", "org/name")
    assert (again.code, again.err) == (0, "")
    assert again.out.endswith("nothing has changed there\nopened as: hf://org/name\n")
    assert hub.repositories["org/name"].commits == commits
    hub.repositories["org/name"].files["notes.txt"] = b"of its owner"
    summary["generations"][1]["metrics"]["score_mean"] = 95.0
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    assert push_to_hub("run", "--repo", "org/name").code == 0
    assert len(hub.repositories["org/name"].commits) == len(commits) + 1
    assert b"95.00" in hub.repositories["org/name"].files["README.md"]
    assert hub.repositories["org/name"].files["notes.txt"] == b"of its owner"


def test_a_card_on_the_hub_that_a_person_has_changed_stays_unless_it_is_said(
    hub: Hub, push_to_hub: Push, tmp_path: Path
) -> None:
    agent_run(tmp_path / "run")
    assert push_to_hub("run", "--repo", "org/name").code == 0
    files = hub.repositories["org/name"].files
    theirs = files["README.md"].replace(b"## Limits", b"## My limits")
    files["README.md"] = theirs
    del files["student.zip"]
    done = push_to_hub("run", "--repo", "org/name")
    assert done.code == 0
    assert "README.md there was written by hand, and stays: --replace_readme would replace it" in done.out
    assert files["README.md"] == theirs
    assert "student.zip" in files
    assert push_to_hub("run", "--repo", "org/name", "--replace_readme").code == 0
    assert is_ours(files["README.md"].decode())


def test_a_readme_that_was_written_here_by_hand_is_sent_as_it_is(hub: Hub, push_to_hub: Push, tmp_path: Path) -> None:
    agent_run(tmp_path / "run")
    (tmp_path / "run" / "README.md").write_text("# My agent\n")
    for _ in range(2):
        assert push_to_hub("run", "--repo", "org/name").code == 0
        assert hub.repositories["org/name"].files["README.md"] == b"# My agent\n"
    assert (tmp_path / "run" / "README.md").read_text() == "# My agent\n"


def test_a_dry_run_says_what_would_be_sent_and_sends_and_writes_nothing(
    hub: Hub, push_to_hub: Push, tmp_path: Path
) -> None:
    agent_run(tmp_path / "run")
    before = contents(tmp_path / "run")
    done = push_to_hub("run", "--repo", "org/name", "--private", "--dry_run")
    assert (done.code, done.err) == (0, "")
    assert "to hf://org/name (private, new):" in done.out
    assert all(name in done.out for name in OF_AN_AGENT)
    assert done.out.endswith("nothing was sent\n")
    assert not hub.repositories
    assert not [asked for asked in hub.asked if not asked.startswith("GET ")]
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("plant", "why"), [("without_token", "there is no token"), ("without_extra", "the extra hub is missing")]
)
def test_a_dry_run_needs_no_token(
    hub: Hub, push_to_hub: Push, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: str, why: str
) -> None:
    agent_run(tmp_path / "run")
    globals()[plant](hub, monkeypatch)
    done = push_to_hub("run", "--repo", "org/name", "--dry_run")
    assert (done.code, done.err) == (0, "")
    assert f"to hf://org/name (public, not looked at: {why}):" in done.out
    assert all(name in done.out for name in OF_AN_AGENT)
    assert not hub.asked


def test_an_onnx_file_goes_along_if_it_is_of_this_student(hub: Hub, push_to_hub: Push, tmp_path: Path) -> None:
    summary = agent_run(tmp_path / "run")
    for name, sha256 in (("student", summary["generations"][1]["sha256"]), ("other", "f" * 64)):
        (tmp_path / "run" / f"{name}.onnx").write_bytes(b"a graph")
        told = {"agent": {"sha256": sha256}, "files": {"float32": {"name": f"{name}.onnx"}}}
        (tmp_path / "run" / f"{name}.onnx.json").write_text(json.dumps(told))
    assert push_to_hub("run", "--repo", "org/name").code == 0
    sent = hub.repositories["org/name"].files
    assert sorted(sent) == sorted([*OF_AN_AGENT, "student.onnx", "student.onnx.json"])
    assert b"`student.onnx`" in sent["README.md"]


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def without_token(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    patch.setattr(huggingface_hub, "get_token", lambda: None)


def without_extra(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "huggingface_hub", None)


def unknown_token(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HF_TOKEN", "hf_another")


def token_that_reads(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.me["auth"]["accessToken"]["role"] = "read"


def no_member(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.me["orgs"] = []


def reader(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.me["orgs"][0]["roleInOrg"] = "read"


def unreachable(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    patch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


def public_one(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/name"] = Repository()


def fault(at: str, what: int | str) -> Callable[[Hub, pytest.MonkeyPatch], None]:
    def plant(hub: Hub, patch: pytest.MonkeyPatch) -> None:
        hub.fault = lambda asked: what if at in asked else None

    return plant


def changed_meanwhile(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    public_one(hub, patch)

    def somebody(asked: str) -> None:
        if "/preupload/" in asked:
            hub.repositories["org/name"].commit({"theirs.txt": b"x"})

    hub.fault = somebody


def full_disk(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    public_one(hub, patch)
    hub.repositories["org/name"].commit({"README.md": b"# Theirs\n"})

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr(huggingface_hub, "hf_hub_download", full)


WRONG = {
    "no extra": (without_extra, "pushing to hf://org/name needs the extra hub: pip install 'polydistill[hub]'"),
    "no token": (without_token, "pushing to hf://org/name needs a token that may write"),
    "unknown token": (unknown_token, "cannot push to hf://org/name: the Hub does not know the token"),
    "token that reads": (token_that_reads, "cannot push to hf://org/name: the token may only read"),
    "no member": (no_member, "cannot push to hf://org/name: jane may write in jane alone"),
    "reader": (reader, "cannot push to hf://org/name: jane may only read in org"),
    "unreachable": (unreachable, "cannot push to hf://org/name: "),
    "may not make one": (fault("/repos/create", 403), "cannot push to hf://org/name: the token may not write there"),
    "refused": (fault("/commit/", 403), "cannot push to hf://org/name: the token may not write there"),
    "server error": (fault("/commit/", 500), "cannot push to hf://org/name: "),
    "dies at the start": (fault("/whoami", "die"), "cannot push to hf://org/name: "),
    "dies while a file is sent": (fault("PUT /lfs/", "die"), "cannot push to hf://org/name: "),
    "dies at the commit": (fault("/commit/", "die"), "cannot push to hf://org/name: "),
    "changed meanwhile": (changed_meanwhile, "cannot push to hf://org/name: it was changed meanwhile: try again"),
    "full disk": (full_disk, "cannot push to hf://org/name: [Errno 28] No space left on device"),
}


@pytest.mark.parametrize("what", WRONG)
def test_whatever_goes_wrong_is_one_line_and_costs_nothing(
    what: str, hub: Hub, push_to_hub: Push, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_run(tmp_path / "run")
    plant, words = WRONG[what]
    before = contents(tmp_path / "run")
    with monkeypatch.context() as patch:
        plant(hub, patch)
        done = push_to_hub("run", "--repo", "org/name", "--dry_run", "false")
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith(f"error: {words}"), line
    assert line.endswith(
        "; the run in run is finished and kept, and is pushed by python scripts/push_to_hub.py run --repo org/name"
    )
    left = contents(tmp_path / "run")
    assert {name: left[name] for name in before} == before
    assert left.keys() - before.keys() <= {"README.md"}
    made = hub.repositories.get("org/name")
    assert made is None or not made.files.keys() & {"student.zip", "summary.json"}, "whole or not at all"


def test_a_public_repository_is_no_private_one(hub: Hub, push_to_hub: Push, tmp_path: Path) -> None:
    agent_run(tmp_path / "run")
    hub.repositories["org/name"] = Repository()
    done = push_to_hub("run", "--repo", "org/name", "--private", "true")
    assert done.code == 2
    assert "hf://org/name is there and public" in done.err
    assert not hub.repositories["org/name"].files


@pytest.mark.parametrize(
    "name", ["name", "org/", "/name", "org/name/x", "org/na me", "org/-name", "org/a..b", "a/b.git"]
)
def test_a_wrong_name_is_one_line_before_anybody_is_asked(
    name: str, hub: Hub, push_to_hub: Push, tmp_path: Path
) -> None:
    agent_run(tmp_path / "run")
    done = push_to_hub("run", "--repo", name)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "is no name of a repository: it must be of the form org/name" in done.err
    assert not hub.asked


def test_what_is_no_finished_run_is_one_line(hub: Hub, push_to_hub: Push, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        done = push_to_hub(folder, "--repo", "org/name")
        assert (done.code, done.out) == (2, "")
        assert done.err == f"error: {folder} has no summary.json: it is no finished run\n"
    assert push_to_hub("empty", "--repo", "org/name", "--license", "MIT License").err.startswith("error: --license ")
    assert not hub.asked


def test_a_new_repository_may_be_looked_at_without_making_it(hub: Hub) -> None:
    repository = open_repository("org/name", private=True)
    assert (repository.head, repository.private, repository.readme) == (None, True, None)
    assert repository.describe() == "hf://org/name (private, new)"
    assert not hub.repositories
    hub.repositories["org/name"] = Repository(private=True)
    hub.repositories["org/name"].commit({"README.md": b"# Theirs\n"})
    found = open_repository("hf://org/name")
    assert (found.head, found.private, found.readme) == (hub.repositories["org/name"].commits[-1], True, "# Theirs\n")


def test_whether_the_token_may_write_is_asked_where_client_and_server_know_the_question(hub: Hub) -> None:
    from huggingface_hub import HfApi

    hub.repositories["org/name"] = Repository()
    hub.fault = lambda asked: 404 if asked.endswith("/auth-check/write") else None
    assert open_repository("org/name").head == hub.repositories["org/name"].commits[-1]
    if "write" not in inspect.signature(HfApi.auth_check).parameters:
        pytest.skip("this client cannot ask")
    hub.fault = lambda asked: 403 if asked.endswith("/auth-check/write") else None
    with pytest.raises(UserError, match="may not write there"):
        open_repository("org/name")


def test_names_are_the_hubs() -> None:
    from huggingface_hub.utils import validate_repo_id

    assert check_name("hf://my-org/a_b.c-1") == "my-org/a_b.c-1"
    validate_repo_id("my-org/a_b.c-1")
    assert len("o/" + "n" * 95) > push.LONGEST_NAME
    with pytest.raises(UserError):
        check_name("o/" + "n" * 95)
