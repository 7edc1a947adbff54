"""The layers of the project: who may import whom, and what may lie where. Read from the source, nothing imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

FOLDERS = {".ci", "agents", "configs", "polydistill", "scripts", "tests"}
VAGUE_NAMES = {"util", "utils", "common", "helper", "helpers", "misc"}
PURE = ("polydistill.losses", "polydistill.kernels")

# (where, what it must not import), as dotted prefixes
FORBIDDEN = [
    ("polydistill", ("agents", "scripts", "tests", "stable_baselines3", "sb3_contrib", "gymnasium", "ale_py")),
    ("polydistill.losses", ("triton", "tensorboard", "jsonargparse", "yaml", "rich")),
    ("polydistill.vision", ("polydistill.study",)),
    ("polydistill.study", ("polydistill.vision",)),
    ("agents", ("scripts", "tests")),
    ("scripts", ("scripts", "tests")),
    ("tests", ("scripts",)),
]


def is_within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def module_name(root: Path, path: Path) -> str:
    """``polydistill/losses/__init__.py`` -> ``polydistill.losses``."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(root: Path, path: Path) -> Iterator[str]:
    """Every module that the file imports, by statement (relative ones resolved) or by ``import_module("name")``.

    ``from a import b`` counts as ``a`` and as ``a.b``, which may be a module too.
    """
    package = module_name(root, path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                above = package[: len(package) - level + 1] if level else []
                origin = ".".join([*above, *([module] if module else [])])
                yield origin
                yield from (f"{origin}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def python_files(root: Path) -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))


def import_faults(root: Path) -> list[str]:
    """One line per import that runs against the layers."""
    faults = []
    script_names = {path.stem for path in (root / "scripts").glob("*.py")}
    kernel_users = set()
    for path in python_files(root):
        module = module_name(root, path)
        where = path.relative_to(root)
        for imported in sorted(set(imported_modules(root, path))):
            banned = [name for layer, names in FORBIDDEN if is_within(module, layer) for name in names]
            if any(is_within(imported, name) for name in banned) or imported.split(".")[0] in script_names:
                faults.append(f"{where} imports {imported}")
            pure = any(is_within(module, layer) for layer in PURE)
            if pure and is_within(imported, "polydistill") and not any(is_within(imported, layer) for layer in PURE):
                faults.append(f"{where} imports {imported}: losses and kernels know nothing of training")
            in_library = is_within(module, "polydistill") or is_within(module, "agents")
            if in_library and not is_within(module, "polydistill.kernels"):
                if is_within(imported, "triton"):
                    faults.append(f"{where} imports {imported} outside polydistill/kernels")
                if is_within(imported, "polydistill.kernels"):
                    kernel_users.add(str(where))
    if len(kernel_users) > 1:
        faults.append(f"more than one place chooses between plain and fused functions: {sorted(kernel_users)}")
    return list(dict.fromkeys(faults))


def layout_faults(root: Path) -> list[str]:
    """One line per folder or module that has no place in the project."""
    ignored = [".git"]  # and the folders of .gitignore, which tools and runs make
    for line in (root / ".gitignore").read_text(encoding="utf-8").splitlines():
        if line.endswith("/") and not line.startswith("#"):
            ignored.append(line.strip("/"))
    faults = []
    for entry in sorted(root.iterdir()):
        if any(fnmatch(entry.name, pattern) for pattern in ignored):
            continue
        if entry.is_dir() and entry.name not in FOLDERS:
            faults.append(f"root folder {entry.name}/")
        if entry.suffix == ".py":
            faults.append(f"loose module {entry.name}")
    for path in python_files(root):
        where = path.relative_to(root)
        if VAGUE_NAMES & set(where.with_suffix("").parts):
            faults.append(f"vague name {where}")
        if where.parts[0] in {"tests", "scripts"} and path.name == "__init__.py":
            # tests/agents/__init__.py would make pytest import that folder as the package `agents`
            faults.append(f"{where}: tests and scripts are no packages")
    return faults


def write(root: Path, files: dict[str, str]) -> Path:
    """A small tree that keeps the rules, plus ``files``."""
    for name, text in {".gitignore": "/runs/\n*.egg-info/\n", "polydistill/__init__.py": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_imports_run_one_way(root: Path) -> None:
    assert import_faults(root) == []


def test_folders_and_module_names_are_those_of_the_design(root: Path) -> None:
    assert layout_faults(root) == []


def test_every_layer_has_files_to_check(root: Path) -> None:
    checked = {path.relative_to(root).parts[0] for path in python_files(root)}
    assert {"polydistill", "agents", "scripts", "tests"} <= checked


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("polydistill/lineage.py", "import agents.atari"),
        ("polydistill/lineage.py", "def late():\n    from agents import atari"),
        ("polydistill/lineage.py", "import importlib\nimportlib.import_module('agents')"),
        ("polydistill/lineage.py", "if TYPE_CHECKING:\n    from gymnasium import Env"),
        ("polydistill/vision/data.py", "import stable_baselines3"),
        ("polydistill/vision/data.py", "import ale_py"),
        ("polydistill/vision/data.py", "from ..study import plan"),
        ("polydistill/study/plan.py", "import polydistill.vision"),
        ("polydistill/tracking.py", "import triton.language as tl"),
        ("polydistill/losses/policy.py", "from polydistill.lineage import Lineage"),
        ("polydistill/losses/policy.py", "from polydistill import tracking"),
        ("polydistill/losses/policy.py", "from ..config import parse"),
        ("polydistill/losses/__init__.py", "from .. import checkpoint"),
        ("polydistill/kernels/policy.py", "import polydistill.checkpoint"),
        ("agents/replay.py", "from scripts.distill_atari import main"),
        ("agents/replay.py", "import distill_atari"),
        ("tests/test_replay.py", "import scripts.distill_atari"),
        ("scripts/study.py", "from distill_atari import main"),
    ],
)
def test_an_import_against_the_layers_is_found(tmp_path: Path, name: str, source: str) -> None:
    faults = import_faults(write(tmp_path, {"scripts/distill_atari.py": "", name: source}))
    assert faults
    assert all(fault.startswith(name) for fault in faults)


def test_a_second_place_that_chooses_kernels_is_found(tmp_path: Path) -> None:
    chooser = {"polydistill/losses/backend.py": "from polydistill.kernels import policy"}
    assert import_faults(write(tmp_path, chooser)) == []
    assert len(import_faults(write(tmp_path, {"agents/distillation.py": "import polydistill.kernels"}))) == 1


def test_imports_along_the_layers_pass(tmp_path: Path) -> None:
    files = {
        "polydistill/losses/policy.py": "from .checks import check\nfrom polydistill.losses import checks",
        "polydistill/kernels/policy.py": "import triton",
        "polydistill/tracking.py": "from .config import parse\nimport torch.utils.tensorboard",
        "agents/replay.py": "import gymnasium\nfrom polydistill.losses import policy_kl\nfrom . import atari",
        "scripts/distill_atari.py": "from agents.atari import make\nimport polydistill.kernels",
        "tests/test_replay.py": "import agents.replay, polydistill.kernels, stable_baselines3",
    }
    assert import_faults(write(tmp_path, files)) == []


@pytest.mark.parametrize(
    "name",
    [
        "tools/thing.py",
        "setup.py",
        "polydistill/utils.py",
        "agents/common/__init__.py",
        "tests/helpers.py",
        "tests/agents/__init__.py",
        "scripts/__init__.py",
    ],
)
def test_a_file_out_of_place_is_found(tmp_path: Path, name: str) -> None:
    assert layout_faults(write(tmp_path, {"runs/pong/a.py": "", "polydistill.egg-info/a.py": ""})) == []
    assert len(layout_faults(write(tmp_path, {name: ""}))) == 1
