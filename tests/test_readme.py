"""README's commands exist, its links lead somewhere, and it is short."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)
ASSIGNMENT = re.compile(r"^[A-Za-z_]+=")
IN_CLONE = re.compile(r"^(configs|scripts|agents|polydistill|tests|\.ci)/")  # elsewhere: what a command makes
OF_THE_SYSTEM = {"git", "cd", "pip", "source", ".", "tensorboard"}


def commands(readme: str) -> list[list[str]]:
    """The words of every command in the ```sh blocks, comments and leading assignments gone."""
    result = []
    for block in BLOCK.findall(readme):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if set(word) <= set(";&|"):
                    if words:
                        result.append(words)
                    words = []
                elif words or not ASSIGNMENT.match(word):
                    words.append(word)
    return result


def command_faults(words: list[str], root: Path) -> list[str]:
    """What the command names and the clone does not have."""
    program, *arguments = words
    faults = []
    if program == "make":
        targets = set(TARGET.findall((root / "Makefile").read_text(encoding="utf-8")))
        named = [word for word in arguments if not word.startswith("-") and not ASSIGNMENT.match(word)]
        faults += [f"make target {name}" for name in named if name not in targets]
    elif Path(program).name in {"python", "python3"}:
        if not arguments or not (arguments[0] in {"-m", "-c"} or arguments[0].endswith(".py")):
            faults.append(f"python without a script: {shlex.join(words)}")
    elif program not in OF_THE_SYSTEM and not (root / program).is_file():
        faults.append(f"program {program}")
    files = {value for word in arguments if IN_CLONE.match(value := word.split("=", 1)[-1])}
    files |= {value for flag, value in pairwise(arguments) if flag == "--config"}
    return faults + [f"file {value}" for value in sorted(files) if not (root / value).exists()]


def test_readme_shows_the_two_first_commands(root: Path) -> None:
    shown = commands((root / "README.md").read_text(encoding="utf-8"))
    assert ["make", "distill"] in shown
    assert ["make", "test"] in shown


def test_every_command_in_readme_exists(root: Path) -> None:
    shown = commands((root / "README.md").read_text(encoding="utf-8"))
    assert [fault for words in shown for fault in command_faults(words, root)] == []


def test_readme_names_the_version_of_torch_that_is_tested(root: Path) -> None:
    (pin,) = re.findall(r"^torch==.*$", (root / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"`pip install {pin} --index-url" in (root / "README.md").read_text(encoding="utf-8")


def test_readme_is_short_after_its_first_screen(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    assert len(text[text.index("## Installation") :].split()) <= 900
    prose = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    long = [part for part in re.split(r"\n\n|\n- ", prose) if len(part.split()) > 80 and not part.startswith("|")]
    assert long == []


def test_readmes_example_of_an_agent_runs_and_is_ten_lines(root: Path, tmp_path: Path, run_python: Any) -> None:
    """With fewer steps: it is the calls that are tried here."""
    text = (root / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(from stable_baselines3.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(example.strip().splitlines()) <= 11
    for steps, fewer in (("n_steps=256", "n_steps=32"), ("80_000", "256"), ("20_000", "4_800")):
        assert steps in example
        example = example.replace(steps, fewer)
    student = tmp_path / "student.zip"
    done = run_python("-c", example.replace('"student.zip"', repr(str(student))))
    assert done.returncode == 0, done.stderr
    assert student.is_file()


def test_links_of_the_documents_lead_somewhere(root: Path) -> None:
    documents = [*root.glob("*.md"), *root.glob("docs/*.md")]
    links = {
        (path, link)
        for path in documents
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
        if "://" not in link
    }
    assert len(documents) > 5
    assert [(path.name, link) for path, link in sorted(links) if not (path.parent / link).exists()] == []


def test_commands_are_read_as_a_shell_would() -> None:
    readme = "```sh\nX=1 make test ARGS='-k a'  # fast\ncd a && python b.py \\\n  --c d\n```\n```python\nmake no\n```\n"
    assert commands(readme) == [["make", "test", "ARGS=-k a"], ["cd", "a"], ["python", "b.py", "--c", "d"]]


@pytest.mark.parametrize(
    "command",
    [
        "make distil",
        "python scripts/distill_atary.py",
        "python",
        ".venv/bin/python scripts/none.py",
        "polydistil --help",
        "python -m pytest tests/no_such_test.py",
        "make distill ARGS=configs/atari/none.yaml",
        "python -m pytest --config none.yaml",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str, root: Path) -> None:
    assert len(command_faults(command.split(), root)) == 1


def test_a_command_that_exists_passes(root: Path) -> None:
    assert command_faults(["make", "test", "distill", "ARGS=--seed=1"], root) == []
    assert command_faults(["python", "-m", "pytest", "tests/test_readme.py", "--out", "runs/new"], root) == []
