"""The package: light to import, whole as a wheel, and usable where the clone is not."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import polydistill
from polydistill import _environment

FOLDERS = {"polydistill": "polydistill", "agents": "polydistill_agents"}  # folders, and what is imported
DATA_SUFFIXES = {".typed", ".csv", ".json", ".zip"}


def last_json_line(process: subprocess.CompletedProcess[str]) -> object:
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


# ---- import ----------------------------------------------------------------------------------------------------


def test_import_polydistill_is_light(run_python) -> None:
    code = (
        "import json, sys, time, torch; before = set(sys.modules); start = time.perf_counter(); import polydistill;"
        "seconds = time.perf_counter() - start; heavy = {'stable_baselines3', 'gymnasium', 'triton', 'tensorboard'};"
        "print(json.dumps([seconds, sorted(heavy & (set(sys.modules) - before))]))"
    )
    tries = [last_json_line(run_python("-c", code)) for _ in range(2)]  # the quicker one: the machine may be busy
    assert min(seconds for seconds, _ in tries) < 1.5
    assert all(heavy == [] for _, heavy in tries)


def test_import_losses_loads_no_training_stack(run_python) -> None:
    code = (
        "import json, sys, polydistill.losses;"
        "heavy = {'stable_baselines3', 'gymnasium', 'ale_py', 'tensorboard', 'jsonargparse'};"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    assert last_json_line(run_python("-c", code)) == []


def users_dependencies(project: dict[str, Any]) -> list[str]:
    """What the library and its extras for users require, without those that name the project again."""
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + [line for name, lines in extras.items() if name != "dev" for line in lines]
    return [line for line in dict.fromkeys(lines) if not line.startswith("polydistill[")]


# ---- versions --------------------------------------------------------------------------------------------------


def test_oldest_versions_are_those_that_the_project_allows(root: Path) -> None:
    """So that `make test-oldest` tries what pyproject.toml promises. Tools of the tests come in any version."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    promised = [*users_dependencies(project), *(x for x in extras["dev"] if x.startswith("sb3"))]
    floors = {re.split(">=|,", entry)[0]: re.split(">=|,", entry)[1] for entry in promised}
    lines = (root / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for follower in ("torchvision", "pyparsing"):  # what others bring, which we do not ask for
        del pins[follower]
    assert {name: pin.removesuffix(".*") for name, pin in pins.items()} == floors


# ---- another package named agents ------------------------------------------------------------------------------


def test_another_package_named_agents_lies_beside_ours(wheel: Path, tmp_path: Path) -> None:
    """As openai-agents does: neither overwrites the other, and taking one away leaves the other."""
    site = tmp_path / "site"
    pip("install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    stranger = site / "agents" / "__init__.py"
    assert not stranger.exists()
    stranger.parent.mkdir()
    stranger.write_text("WHOSE = 'a stranger'")
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "import agents, polydistill_agents; from polydistill_agents import as_teacher\n"
        "print(agents.WHOSE, polydistill_agents.__file__)"
    )
    command = [sys.executable, "-I", "-c", code, str(site), str(Path(pytest.__file__).parent.parent)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (process.returncode, process.stdout) == (0, f"a stranger {site}/polydistill_agents/__init__.py\n"), process


def test_a_clone_runs_with_another_agents_before_it_on_the_path(run_python, tmp_path: Path) -> None:
    stranger = tmp_path / "elsewhere" / "agents.py"
    stranger.parent.mkdir()
    stranger.write_text("raise RuntimeError('a stranger')")
    code = "from polydistill._environment import require_environment; require_environment('atari'); print('passed')"
    process = run_python("-c", code, path=(stranger.parent,))
    assert (process.returncode, process.stdout, process.stderr) == (0, "passed\n", "")


CHECK = "from polydistill._environment import require_environment; require_environment('atari')"


def test_agents_of_another_clone_are_one_line_and_code_2(run_python, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "polydistill_agents" / "__init__.py"
    other.parent.mkdir(parents=True)
    other.write_text("")
    process = run_python("-c", CHECK, path=(tmp_path / "elsewhere",))
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == (
        f"error: polydistill_agents is installed from {other.parent}, not from this clone: "
        "pip install -e . in this clone\n"
    )


def test_missing_agents_is_one_line_and_code_2(run_python) -> None:
    process = run_python(
        "-c",
        "import polydistill._environment as e; find = e.find_spec\n"
        "e.find_spec = lambda name: None if name == 'polydistill_agents' else find(name)\n"
        "e.require_environment('atari')",
    )
    assert process.returncode == 2
    assert re.fullmatch(r"error: polydistill is not installed for .+\n", process.stderr)


def test_the_names_of_the_door_are_those_of_their_modules() -> None:
    import polydistill_agents

    assert sorted(polydistill_agents._HOMES) == polydistill_agents.__all__
    for name, home in polydistill_agents._HOMES.items():
        module = importlib.import_module(f"polydistill_agents.{home}")
        assert getattr(polydistill_agents, name) is getattr(module, name)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = polydistill_agents.no_such_name


def test_the_door_loads_nothing_until_it_is_asked(run_python) -> None:
    code = (
        "import json, sys, polydistill_agents; heavy = {'stable_baselines3', 'gymnasium', 'ale_py', 'torch'};"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    assert last_json_line(run_python("-c", code)) == []


def test_every_package_is_listed_for_the_wheel(root: Path) -> None:
    listed = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert listed == sorted(set(listed))
    folders = [path.parent.relative_to(root) for top in FOLDERS for path in (root / top).rglob("__init__.py")]
    assert sorted(listed) == sorted(".".join((FOLDERS[path.parts[0]], *path.parts[1:])) for path in folders)


# ---- the wheel -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build in the clone would leave, and reuse, a stale build folder."""
    source = tmp_path_factory.mktemp("source")
    for name in (*FOLDERS, "tests", "scripts", "configs"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target), str(source))
    (built,) = target.glob("*.whl")
    return built


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--no-input", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    return target


def test_wheel_holds_the_library_and_its_data_and_nothing_else(wheel: Path, root: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = f"polydistill-{polydistill.__version__}.dist-info"
    expected = {
        "/".join((name, *path.relative_to(root / folder).parts))
        for folder, name in FOLDERS.items()
        for path in (root / folder).rglob("*")
        if path.suffix in {".py", *DATA_SUFFIXES}
    }
    assert {
        "polydistill/__init__.py",
        "polydistill/py.typed",
        "polydistill_agents/__init__.py",
        "polydistill_agents/py.typed",
    } <= expected
    assert {name for name in names if not name.startswith(metadata)} == expected
    assert f"{metadata}/licenses/LICENSE" in names


def test_wheel_metadata_names_the_dependencies_and_python(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = archive.read(name).decode()
    assert "\nRequires-Python: >=3.11\n" in metadata
    required = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.MULTILINE)
    assert required == ["torch", "numpy"]
    atari = re.findall(r"^Requires-Dist: ([\w-]+).*; extra == .atari.$", metadata, re.MULTILINE)
    assert {"polydistill", "stable-baselines3", "gymnasium", "ale-py"} <= set(atari)
    extras = re.findall(r"^Provides-Extra: (\w+)$", metadata, re.MULTILINE)
    assert extras == [
        "runs", "atari", "vision", "timm", "hub", "study", "ray", "slurm", "export", "box2d", "minigrid", "all", "dev",
    ]  # fmt: skip


USE_ONCE = """
import importlib, json, pkgutil, sys
target, site, dev = json.loads(sys.argv[1])
sys.path += [target, site]
sys.modules.update(dict.fromkeys(dev))  # importing them raises ImportError, as where only the wheel is installed
import polydistill_agents, polydistill, torch
from polydistill.losses import policy_kl
places = [polydistill.__file__, polydistill_agents.__file__]
for package in (polydistill, polydistill_agents):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith("polydistill.kernels"):  # triton is there only where there is a GPU
            places.append(importlib.import_module(module.name).__file__)
loss = policy_kl(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])).item()
print(json.dumps({"places": places, "loss": loss}))
"""


def test_wheel_is_used_where_the_clone_is_not(installed: Path, tmp_path: Path) -> None:
    site = str(Path(pytest.__file__).parent.parent)  # the dependencies; -S leaves out its .pth files: no clone
    dev = ["cv2", "hypothesis", "mypy", "pytest", "ruff", "scipy"]
    process = subprocess.run(
        [sys.executable, "-I", "-S", "-c", USE_ONCE, json.dumps([str(installed), site, dev])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    used = last_json_line(process)
    assert all(Path(place).is_relative_to(installed) for place in used["places"])
    assert used["loss"] == pytest.approx(0.6931472, abs=1e-6)  # a sure teacher, a student that knows nothing: ln 2


COMMANDS = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]["scripts"]


def run_command(installed: Path, folder: Path, name: str, *words: str, before: str = "") -> Any:
    """An installed console command, without the clone, as pip's script calls it; ``before``: code that runs first."""
    site = str(Path(pytest.__file__).parent.parent)
    code = (
        f"import sys; sys.path[:0] = [{str(installed)!r}, {site!r}]; sys.argv = sys.argv[1:]; {before}\n"
        "from importlib.metadata import entry_points\n"
        "(command,) = entry_points(group='console_scripts', name=sys.argv[0].rpartition('/')[2])\n"
        "command.load()()"
    )
    command = [sys.executable, "-I", "-S", "-c", code, f"/somewhere/bin/{name}", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_console_command_prints_its_help_where_the_clone_is_not(installed: Path, tmp_path: Path, name: str) -> None:
    if name == "polydistill-images" and not (Path(pytest.__file__).parent.parent / "timm").is_dir():
        pytest.skip("the extra timm is not installed")
    done = run_command(installed, tmp_path, name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {name} ")
    assert f"    {name} " in done.stdout, "an example"
    assert "scripts/" not in done.stdout


def test_the_console_commands_are_those_of_the_table() -> None:
    assert list(COMMANDS) == list(_environment.COMMANDS)
    for _, module in _environment.COMMANDS.values():
        assert callable(importlib.import_module(module).main)


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("polydistill-agent", "ale_py", "atari"),
        ("polydistill-cifar", "pooch", "vision"),
        ("polydistill-show", "rich", "runs"),
    ],
)
def test_a_console_command_without_its_extra_is_one_line_and_code_2(
    installed: Path, tmp_path: Path, name: str, missing: str, extra: str
) -> None:
    done = run_command(installed, tmp_path, name, "--help", before=f"sys.modules[{missing!r}] = None")
    assert (done.returncode, done.stdout) == (2, "")
    told = f"this needs the extra {extra} ({missing} not found): pip install 'polydistill[{extra}]'"
    assert done.stderr == f"error: {name}: {told}\n"


def test_a_console_command_runs_without_the_clone_and_says_in_its_summary_how_it_was_called(
    installed: Path, tmp_path: Path
) -> None:
    words = ["--threads", "1", "--device", "cpu", "--training.epochs", "1", "--lineage.generations", "1"]
    done = run_command(installed, tmp_path, "polydistill-cifar", *words, before="import os; os.environ.clear()")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs" / "cifar" / "summary.json").read_text())
    assert summary["command"] == " ".join(["polydistill-cifar", *words])
    shown = run_command(installed, tmp_path, "polydistill-show", "runs/cifar")
    assert shown.stdout.strip() in done.stdout


def test_every_third_party_import_of_the_library_is_a_declared_dependency(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = users_dependencies(project)
    modules = {re.match(r"[\w-]+", line).group().replace("-", "_") for line in declared}
    modules |= {"yaml" if "pyyaml" in modules else "", "PIL" if "pillow" in modules else "", *FOLDERS.values()}
    imported = set()
    for path in (path for package in FOLDERS for path in (root / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names - modules - {"triton"} == set()  # triton comes with torch's GPU builds
