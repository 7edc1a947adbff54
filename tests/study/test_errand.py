"""What another computer is asked, and what it answers when it is not the study's fellow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import polydistill
from polydistill.errors import UserError
from polydistill.provenance import version_of_code
from polydistill.study.executors.errand import make_errand, outcome_of, words_of
from polydistill.study.executors.interface import Job
from polydistill.study.executors.task import carry_out

cloudpickle = pytest.importorskip("cloudpickle")


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text("a plan")
    return path


def job(tmp_path: Path, code: str) -> Job:
    return Job("a", (sys.executable, "-c", code), tmp_path / "logs" / "a.txt")


def test_a_job_tells_its_code_and_works_where_the_study_does(tmp_path: Path, witness: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "import os, sys; print(os.getcwd(), os.environ['OMP_NUM_THREADS'], os.environ['WHOSE']); sys.exit(3)"
    answer = carry_out(words_of(job(tmp_path, code)._replace(environment=(("WHOSE", "mine"),)), witness))
    assert answer["code"] == 3
    assert 0 < answer["seconds"] < 60
    assert (tmp_path / "logs" / "a.txt").read_text().split() == [str(tmp_path), "1", "mine"]


def test_without_a_job_it_only_looks(witness: Path) -> None:
    assert carry_out(words_of(None, witness)) == {}


def test_another_version_is_refused_and_both_are_named(witness: Path) -> None:
    why = carry_out(words_of(None, witness) | {"version": "0.0.9 (0123456789ab)"})["refused"]
    assert f"has polydistill {version_of_code()}, the study 0.0.9 (0123456789ab): install the same version" in why
    assert polydistill.__version__ in version_of_code()


def test_another_folder_is_refused(tmp_path: Path, witness: Path) -> None:
    words = words_of(None, witness)
    assert "no folder /not/there: start the study in a folder" in carry_out(words | {"folder": "/not/there"})["refused"]
    witness.write_text("another plan")
    assert f"has another {witness}: give --out a folder that all computers share" in carry_out(words)["refused"]
    witness.unlink()
    assert f"does not share {tmp_path} (No such file" in carry_out(words)["refused"]


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path, witness: Path) -> None:
    (tmp_path / "logs").touch()
    assert "logs" in carry_out(words_of(job(tmp_path, ""), witness))["refused"]


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        ({"code": 0, "seconds": 2.0}, ""),
        ({"code": 2, "seconds": 2.0}, ""),
        ({"code": -9, "seconds": 2.0}, "ended by SIGKILL"),
        ({"code": 143, "seconds": 2.0}, "ended by SIGTERM"),
        ({"refused": "why"}, "why"),
    ],
)
def test_what_other_computers_end_is_lost_and_what_ends_by_itself_is_not(answer: dict[str, Any], lost: str) -> None:
    assert outcome_of("a", answer, 3.0) == ("a", answer.get("code", 1), answer.get("seconds", 3.0), lost)


def test_a_plan_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*plan.json: No such file"):
        words_of(None, tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("there", "has"),
    [
        ("", "it has none"),
        ("__version__ = '0.0.1'\n", "it has 0.0.1"),
    ],
)
def test_a_computer_without_the_package_or_with_an_old_one_says_so(
    tmp_path: Path, witness: Path, there: str, has: str
) -> None:
    (tmp_path / "errand.pkl").write_bytes(cloudpickle.dumps(make_errand()))
    (tmp_path / "words.json").write_text(json.dumps(words_of(None, witness)))
    if there:
        (tmp_path / "there" / "polydistill").mkdir(parents=True)
        (tmp_path / "there" / "polydistill" / "__init__.py").write_text(there)
    code = (
        f"import json, pickle, sys; sys.path.insert(0, {str(tmp_path / 'there')!r})\n"
        f"sys.path.append({str(Path(cloudpickle.__file__).parents[1])!r})\n"
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in repr(finder).lower()]\n"
        "sys.path = [path for path in sys.path if path]\n"
        f"errand = pickle.load(open({str(tmp_path / 'errand.pkl')!r}, 'rb'))\n"
        f"print(errand(json.load(open({str(tmp_path / 'words.json')!r})))['refused'])"
    )
    done = subprocess.run([sys.executable, "-S", "-I", "-c", code], capture_output=True, text=True, check=True)
    assert has in done.stdout, done.stderr
    assert f"the study {version_of_code()}; install that there" in done.stdout
    assert len(done.stdout.splitlines()) == 1
