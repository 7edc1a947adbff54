"""The layers of the project: who may import whom, and what may lie where. Read from the source, nothing imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

FOLDERS = {".ci", "agents", "configs", "docs", "polydistill", "scripts", "tests"}
INSTALLED = {"agents": "polydistill_agents"}  # the folder, and the name of its package
# what only a world says; the extras of an installation are named in _environment.py
WORLDS = re.compile(r"atari|cifar|imagenet|pong|student\.zip|stable_baselines3|sb3|gymnasium|ale_py", re.IGNORECASE)
KNOW_NO_WORLD = (
    "*.py", "config/*.py", "runs/*.py", "learning/*.py", "lineage/*.py", "modules/*.py", "kernels/**/*.py",
    "statistics/*.py", "study/*.py", "report/*.py", "hub/*.py",
)  # fmt: skip
VAGUE_NAMES = {"util", "utils", "common", "helper", "helpers", "misc"}
PURE = ("polydistill.losses", "polydistill.kernels")

# rooms from the ground up: each may import those before it; those of one line know nothing of each other
ROOMS = {
    "polydistill_agents": [
        ["networks"],
        ["environments"],
        ["files"],
        ["teachers"],
        ["distillation", "export"],
        ["lineage"],
        ["commands"],
    ],
    "polydistill": [
        ["config", "report", "statistics"],
        ["kernels"],
        ["losses"],
        ["learning", "runs"],
        ["hub", "lineage"],
        ["modules"],
        ["study", "vision"],
        ["image_folders"],
    ],
}
# (where, what it must not import), as dotted prefixes
FORBIDDEN = [
    (
        "polydistill",
        ("polydistill_agents", "scripts", "tests", "stable_baselines3", "sb3_contrib", "gymnasium", "ale_py"),
    ),
    ("polydistill.losses", ("triton", "tensorboard", "jsonargparse", "yaml", "rich")),
    ("polydistill_agents", ("scripts", "tests", "polydistill.vision")),
    ("scripts", ("scripts", "tests")),
    ("tests", ("scripts",)),
    ("", ("agents",)),  # the folder's name: another distribution's package when installed
]


def is_within(module: str, prefix: str) -> bool:
    return not prefix or module == prefix or module.startswith(prefix + ".")


def module_name(root: Path, path: Path) -> str:
    """``polydistill/losses/__init__.py`` -> ``polydistill.losses``, ``agents/a.py`` -> ``polydistill_agents.a``."""
    folder, *parts = path.relative_to(root).with_suffix("").parts
    parts.insert(0, INSTALLED.get(folder, folder))
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


def rooms_above(module: str) -> list[str]:
    """The rooms that a module must not import: those above its own, and those beside it."""
    package, *rest = module.split(".")
    lines = ROOMS.get(package, [])
    own = next((line for line, names in enumerate(lines) if rest and rest[0] in names), None)
    if own is None:  # the ground floor knows no room; a package's own door may name all
        return [f"{package}.{name}" for names in lines for name in names] if rest else []
    return [f"{package}.{name}" for names in lines[own:] for name in names if name != rest[0]]


def import_cycles(root: Path) -> list[str]:
    """One line per circle of modules that import each other, at whatever place in their files."""
    modules = {module_name(root, path): path for path in python_files(root)}
    imports = {}
    for module, path in modules.items():
        named = set(imported_modules(root, path)) & modules.keys() - {module}
        # `from package import module` names both: the package's door is meant only where nothing else is
        imports[module] = {
            name for name in named if not any(is_within(other, name) and other != name for other in named)
        }
    cycles, finished = [], set()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            cycles.append(" -> ".join([*way[way.index(module) :], module]))
        elif module not in finished:
            for name in sorted(imports[module]):
                visit(name, [*way, module])
            finished.add(module)

    for module in sorted(modules):
        visit(module, [])
    return cycles


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
            banned += rooms_above(module)
            if any(is_within(imported, name) for name in banned) or imported.split(".")[0] in script_names:
                faults.append(f"{where} imports {imported}")
            pure = any(is_within(module, layer) for layer in PURE)
            if pure and is_within(imported, "polydistill") and not any(is_within(imported, layer) for layer in PURE):
                faults.append(f"{where} imports {imported}: losses and kernels know nothing of training")
            in_library = is_within(module, "polydistill") or is_within(module, "polydistill_agents")
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


def worldly_words(root: Path) -> list[str]:
    """One line per word of a world that is said below the worlds."""
    package = root / "polydistill"
    paths = {path for pattern in KNOW_NO_WORLD for path in package.glob(pattern)}
    paths -= {package / "__init__.py", package / "_environment.py"}
    return [
        f"{path.relative_to(root)}:{number} says {match[0]}"
        for path in sorted(paths)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in WORLDS.finditer(line)
    ]


def write(root: Path, files: dict[str, str]) -> Path:
    """A small tree that keeps the rules, plus ``files``."""
    for name, text in {".gitignore": "/runs/\n*.egg-info/\n", "polydistill/__init__.py": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_imports_run_one_way(root: Path) -> None:
    assert import_faults(root) == []


def test_no_modules_import_each_other_in_a_circle(root: Path) -> None:
    assert import_cycles(root) == []


def test_a_circle_of_imports_is_found(tmp_path: Path) -> None:
    files = {
        "polydistill/a.py": "from polydistill import b",
        "polydistill/b.py": "def late():\n    from polydistill.c import x",
        "polydistill/c.py": "if TYPE_CHECKING:\n    import polydistill.a",
        "polydistill/d.py": "import polydistill.c",
    }
    cycle = "polydistill.a -> polydistill.b -> polydistill.c -> polydistill.a"
    assert import_cycles(write(tmp_path, files)) == [cycle]


def test_every_room_is_there(root: Path) -> None:
    for package, lines in ROOMS.items():
        folder = next((folder for folder, name in INSTALLED.items() if name == package), package)
        found = {path.parent.name for path in (root / folder).glob("*/__init__.py")}
        assert found == {name for names in lines for name in names}


def test_folders_and_module_names_are_those_of_the_design(root: Path) -> None:
    assert layout_faults(root) == []


def test_the_ground_floor_and_the_rooms_on_it_know_no_world(root: Path) -> None:
    assert worldly_words(root) == []


def test_a_word_of_a_world_below_the_worlds_is_found(tmp_path: Path) -> None:
    files = {
        "polydistill/disk.py": "KEEP = ['student.zip']",
        "polydistill/modules/a.py": "# as for CIFAR",
        "polydistill/vision/config.py": "DATA = 'cifar10'",
        "polydistill/study/plan.py": "WORLD = 'cifar'",
    }
    assert worldly_words(write(tmp_path, files)) == [
        "polydistill/disk.py:1 says student.zip",
        "polydistill/modules/a.py:1 says CIFAR",
        "polydistill/study/plan.py:1 says cifar",
    ]


def test_every_layer_has_files_to_check(root: Path) -> None:
    checked = {path.relative_to(root).parts[0] for path in python_files(root)}
    assert {"polydistill", "agents", "scripts", "tests"} <= checked


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("polydistill/lineage/loop.py", "import polydistill_agents.atari"),
        ("polydistill/lineage/loop.py", "def late():\n    from polydistill_agents import atari"),
        ("polydistill/lineage/loop.py", "import importlib\nimportlib.import_module('polydistill_agents')"),
        ("polydistill/lineage/loop.py", "if TYPE_CHECKING:\n    from gymnasium import Env"),
        ("polydistill/lineage/loop.py", "import agents"),
        ("polydistill/vision/images/data.py", "import stable_baselines3"),
        ("polydistill/vision/images/data.py", "import ale_py"),
        ("polydistill/disk.py", "from polydistill.runs import Run"),
        ("polydistill/config/fields.py", "from ..runs.lock import Lock"),
        ("polydistill/runs/run.py", "from polydistill import lineage"),
        ("polydistill/runs/run.py", "from polydistill.learning import lesson"),
        ("polydistill/learning/lesson.py", "from polydistill.lineage import Lineage"),
        ("polydistill/learning/lesson.py", "def late():\n    import polydistill.vision.domain"),
        ("polydistill/lineage/keeper.py", "from ..vision import domain"),
        ("polydistill/lineage/keeper.py", "from polydistill.study import Plan"),
        ("polydistill/study/plan.py", "from polydistill.vision.config import CifarConfig"),
        ("polydistill/vision/plan.py", "from polydistill.study import Plan"),
        ("polydistill/runs/run.py", "import triton.language as tl"),
        ("polydistill/losses/policy.py", "from polydistill.lineage import Lineage"),
        ("polydistill/losses/policy.py", "from polydistill import runs"),
        ("polydistill/losses/policy.py", "from ..config import parsing"),
        ("polydistill/losses/__init__.py", "from .. import runs"),
        ("polydistill/kernels/policy.py", "import polydistill.runs.checkpoint"),
        ("agents/distillation/replay.py", "from scripts.distill_atari import main"),
        ("agents/distillation/replay.py", "import distill_atari"),
        ("agents/distillation/replay.py", "from agents.files import places"),
        ("agents/distillation/replay.py", "from polydistill_agents.lineage import course"),
        ("agents/distillation/replay.py", "from ..lineage import course"),
        ("agents/environments/atari.py", "from polydistill_agents.files import places"),
        ("agents/networks/nature.py", "from polydistill_agents.environments import atari"),
        ("agents/lineage/domain.py", "from polydistill.vision import evaluation"),
        ("tests/test_replay.py", "import scripts.distill_atari"),
        ("tests/test_replay.py", "from agents.distillation import replay"),
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
    assert len(import_faults(write(tmp_path, {"agents/distillation/a.py": "import polydistill.kernels"}))) == 1


def test_imports_along_the_layers_pass(tmp_path: Path) -> None:
    files = {
        "polydistill/losses/policy.py": "from .checks import check\nfrom polydistill.losses import checks",
        "polydistill/kernels/policy.py": "import triton",
        "polydistill/runs/run.py": "from ..config.parsing import parse\nimport torch.utils.tensorboard",
        "polydistill/lineage/keeper.py": "from polydistill.runs import Run\nfrom polydistill.learning import lesson",
        "agents/distillation/replay.py": "import gymnasium, polydistill.losses\nfrom ..files import places",
        "agents/__init__.py": "from polydistill_agents.lineage import domain",
        "scripts/distill_atari.py": "from polydistill_agents.atari import make\nimport polydistill.kernels",
        "tests/test_replay.py": "import polydistill_agents.replay, polydistill.kernels, stable_baselines3",
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
