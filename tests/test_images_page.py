"""The commands of docs/images.md run, one after another, and its flags exist."""

from __future__ import annotations

import re
import runpy
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.operators import define_operators

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]


pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="the extra timm is not installed")


def test_the_commands_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    torch_threads_restored: None,
) -> None:
    define_operators()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs", target_is_directory=True)
    ran = []
    for command in COMMANDS:
        first, *words = shlex.split(command)
        if first == "pip":
            continue
        script, *options = words
        if "distill_images.py" in script:
            options += ["--device", "cpu", "--threads", "1"]
        if "study.py" in script:
            pytest.importorskip("matplotlib", reason="the extra study is not installed")
        runpy.run_path(str(ROOT / script))["main"](options)
        ran.append(Path(script).name)
    assert ran == ["write_image_folder.py", "distill_images.py", "show.py", "distill_images.py", "study.py"]
    printed = capsys.readouterr().out
    assert "pictures: 600 pictures to learn from, 600 to be tested on" in printed
    assert "| generation 1 | ban_l" in re.sub(" +", " ", printed)
    assert "would write" in printed
    assert "contrasts named beforehand: ban against labels, ban against joint, null against labels" in printed


def test_the_flags_that_the_page_names_exist(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    own = re.compile(r"--(settings\.|arms\.\w+\.)")  # of a study: for all of its runs, or for those of an arm
    names = set(re.findall(r"--[\w.]+", TEXT)) - {"--run.data.root"}
    keys = {own.sub("--", name) for name in names if own.match(name)}
    for script in ("distill_images.py", "write_image_folder.py", "study.py"):
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / "scripts" / script))["main"](["--help"])
    known = set(re.findall(r"--[\w.]+", capsys.readouterr().out)) | {"--wide"}
    assert {name for name in names if not own.match(name)} | keys <= known
    assert {"--settings.training.epochs", "--arms.ban.training.epochs"} <= known, "the help of study.py names its kind"
