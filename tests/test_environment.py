"""What is installed: extras, the base without them, and one line wherever something is missing."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from polydistill import _environment
from polydistill._environment import EXTRAS, MissingExtra, require_environment, require_extra

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
PREAMBLE = """\
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("""


def distribution(requirement: str) -> str:
    """``"Pillow>=10; os == 'x'"`` -> ``pillow``."""
    return re.match(r"[\w.-]+", requirement).group().lower().replace("_", "-")


def with_dependencies(names: list[str]) -> set[str]:
    """The distributions of ``names`` and of all that they require (without extras)."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another system
            continue
        if name not in found:
            found.add(name)
            waiting += [distribution(line) for line in required if "extra ==" not in line]
    return found


def test_extras_are_those_of_pyproject(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    modules = {"pyyaml": "yaml", "pillow": "PIL"}
    assert [distribution(line) for line in project["dependencies"]] == ["torch", "numpy"]
    for extra, known in EXTRAS.items():
        lines = [line for line in extras[extra] if line != "polydistill[runs]"]
        runs = extras["runs"] if len(lines) < len(extras[extra]) else []
        names = [distribution(line) for line in (*runs, *lines)]
        assert [modules.get(name, name.replace("-", "_")) for name in names] == list(known)
    assert extras["all"] == ["polydistill[atari,vision,hub,study]"]
    assert "polydistill[all]" in extras["dev"]


# ---- the base --------------------------------------------------------------------------------------------------

BASE = """
import json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))  # importing them fails, and nothing finds them
import torch
from polydistill.lineage import Lineage, run_lineage
from polydistill.losses import OBJECTIVES, doctor, loss_with_diagnostics, value_and_grad
from polydistill.modules import ModuleDomain
from polydistill.runs import Progress
from polydistill.statistics import compare_pairs, t_interval

weights = torch.full((3,), 1 / 3)
value_and_grad("hinton_kd", torch.eye(3), torch.eye(3), torch.arange(3), row_weights=weights)
loss_with_diagnostics("ban", torch.eye(3), torch.eye(3))
twin, other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
str(doctor(twin, other, "hinton_kd", torch.randn(128, 3), temperature=4.0))
data = [(torch.eye(3), torch.arange(3))]
domain = ModuleDomain(lambda: torch.nn.Linear(3, 3), data, data, epochs=2)
generations = list(domain.distill(2))
with Progress("a loop", 2, "steps") as bar:
    bar.advance(2)

from polydistill.runs import Run
from polydistill.vision import load_classifier
told = []
t_interval([1.0, 2.0, 3.0])
pairs = lambda: compare_pairs([1.0, 3.0], [0.0, 1.0], generator=None)
opens, keeps = lambda: Run.open("x", None, kind="cifar", command=""), lambda: list(domain.distill(2, run="x"))
for use in (pairs, opens, keeps, lambda: load_classifier("x.safetensors")):
    try:
        use()
    except ModuleNotFoundError as error:
        told.append(str(error))
for name in ("polydistill_agents", "polydistill.config.parsing"):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        told.append(str(error))
print(json.dumps([len(generations), told]))
"""


def test_base_installation_gives_losses_doctor_and_lineages_and_names_the_extra_for_the_rest(run_python) -> None:
    base = with_dependencies(["torch", "numpy"])
    packages = metadata.packages_distributions().items()
    others = [module for module, owners in packages if not set(map(distribution, owners)) & (base | {"polydistill"})]
    assert {"yaml", "rich", "gymnasium", "stable_baselines3", "safetensors", "tensorboard", "scipy"} <= set(others)
    assert not {"torch", "numpy", "typing_extensions", "sympy"} & set(others)
    done = run_python("-c", BASE, json.dumps([module for module in others if module.isidentifier()]))
    assert done.returncode == 0, done.stderr
    generations, told = json.loads(done.stdout.splitlines()[-1])
    assert generations == 3
    assert [re.sub(r" \(.*? not found\)", "", line) for line in told] == [
        "this needs the extra study: pip install 'polydistill[study]'",
        "this needs the extra runs: pip install 'polydistill[runs]'",
        "this needs the extra runs: pip install 'polydistill[runs]'",
        "this needs the extra vision: pip install 'polydistill[vision]'",
        "this needs the extra atari: pip install 'polydistill[atari]'",
        "this needs the extra runs: pip install 'polydistill[runs]'",
    ]


def test_an_extra_that_is_there_is_no_error_and_a_missing_one_names_what_is_not(monkeypatch) -> None:
    require_extra("atari")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtra) as error:
        require_extra("atari")
    assert str(error.value) == "this needs the extra atari (gymnasium not found): pip install 'polydistill[atari]'"
    require_extra("vision")


# ---- scripts ---------------------------------------------------------------------------------------------------


def assert_one_line(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert "; use .venv/bin/python, which `make distill` makes, or in the clone: pip install '.[" in line


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_outside_its_environment_is_one_line(name: str, root: Path, tmp_path: Path) -> None:
    """A Python that has nothing installed, not even this project, in another folder."""
    script = root / "scripts" / name
    assert PREAMBLE in script.read_text(encoding="utf-8"), "the same first lines in every script"
    command = [sys.executable, "-I", "-S", str(script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert_one_line(done, f"not installed for {sys.executable}: torch, numpy, jsonargparse")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("distill_atari.py", "ale_py"),
        ("distill_cifar.py", "pooch"),
        ("distill_images.py", "timm"),
        ("bench_losses.py", "yaml"),
        ("study.py", "matplotlib"),
    ],
)
def test_a_script_without_its_extra_is_one_line(name: str, missing: str, root: Path, run_python) -> None:
    code = f"import runpy, sys; sys.modules[{missing!r}] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    done = run_python("-c", code, str(root / "scripts" / name))
    assert_one_line(done, f": {missing}; ")


def test_a_python_that_is_too_old_is_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr(_environment.sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit) as end:
        require_environment("vision")
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: polydistill needs Python 3.11 or later, and {sys.executable} is 3.9; use .venv/bin/python, "
        "which `make distill` makes\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        *(f"scripts/{name}" for name in SCRIPTS),
        *(f"polydistill/{name}.py" for name in ("__init__", "_environment", "cores")),
    ],
)
def test_an_old_python_reads_what_tells_it_that_it_is_too_old(name: str, root: Path) -> None:
    assert ast.parse((root / name).read_text(encoding="utf-8"), feature_version=(3, 8)).body


# ---- systems ---------------------------------------------------------------------------------------------------

WINDOWS = """
import importlib, json, os, pkgutil, signal, sys
from pathlib import Path

import torch, stable_baselines3, gymnasium, ale_py, tensorboard, jsonargparse, pooch, PIL, tqdm, safetensors.torch

for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("fork", "register_at_fork", "sched_getaffinity", "pread", "pwrite", "O_DIRECTORY", "killpg", "getuid"):
    delattr(os, name)
del signal.SIGKILL

import polydistill_agents, polydistill
for package in (polydistill, polydistill_agents):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith("polydistill.kernels.device"):
            importlib.import_module(module.name)

from polydistill.runs.interruption import StopSignals
from polydistill.errors import UserError
from polydistill.runs.interruption import StopSignals
from polydistill.lineage import LineageConfig
from polydistill.runs import Run

out = Path("run")
with Run.open(out, LineageConfig(1), kind="cifar", command="python") as run, StopSignals() as stop:
    run.log("student", 1, {"train/loss": 0.5})
    run.finish({"throughput": {}, "ensembles": [], "generations": []})
    os.kill(os.getpid(), signal.SIGTERM)
    stopped = stop.received is not None
with Run.open(out, LineageConfig(1), kind="cifar", command="python") as run:
    print(json.dumps([stopped, run.summary["kind"]]))
"""


def test_without_what_windows_lacks_everything_imports_and_a_run_is_written(run_python) -> None:
    done = run_python("-c", WINDOWS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [True, "cifar"]
    assert "without locks: start no second process" in done.stderr, "filelock has those of Windows on Windows alone"


# ---- make ------------------------------------------------------------------------------------------------------


def commands_of(target: str, root: Path, tmp_path: Path) -> str:
    """What ``make TARGET`` would run in a clone without an environment."""
    command = ["make", "-n", "-C", str(root), f"VENV={tmp_path / 'none'}", target]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_make_distill_installs_what_a_user_needs_and_make_test_adds_a_developers_tools(
    root: Path, tmp_path: Path
) -> None:
    users, developers = "-c constraints.txt -e '.[atari,vision,study]'", "-c constraints.txt -e '.[dev]'"
    for target in ("distill", "tensorboard"):
        asked = commands_of(target, root, tmp_path)
        assert users in asked
        assert developers not in asked
    for target in ("test", "check", "bench"):
        assert developers in commands_of(target, root, tmp_path)


def test_the_list_of_targets_fits_80_columns(root: Path) -> None:
    shown = subprocess.run(["make", "-s", "-C", str(root)], capture_output=True, text=True, check=True, timeout=60)
    assert "make distill" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) < 80
