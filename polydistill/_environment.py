"""The packages that each part of the project needs, and a one-line error where one is missing.

The base installation is torch and numpy: the losses, the doctor, lineages of one's own modules. The rest comes as
extras. Contract: nothing heavy is imported here, and every Python since 3.8 can run this file: scripts and console
commands ask it first.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, NoReturn

from polydistill.cores import limit_spinning

OLDEST = (3, 11)
_HOW = "use .venv/bin/python, which `make distill` makes"
# the modules that each extra installs; pyproject.toml lists their packages
_RUNS = ("jsonargparse", "yaml", "rich", "tensorboard", "filelock")
EXTRAS = {
    "runs": _RUNS,
    "atari": (*_RUNS, "stable_baselines3", "gymnasium", "ale_py", "tqdm", "PIL", "safetensors"),
    "vision": (*_RUNS, "pooch", "tqdm", "safetensors"),
    "timm": (*_RUNS, "timm", "PIL", "safetensors"),
    "hub": ("huggingface_hub",),
    "study": (*_RUNS, "scipy", "matplotlib"),
    "ray": ("ray",),
    "slurm": ("submitit",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
}
# the console commands of pyproject.toml: the extra that each needs, and the module whose main it calls
COMMANDS = {
    "polydistill-agent": ("atari", "polydistill_agents.commands.distill_agent"),
    "polydistill-agents-ensemble": ("atari", "polydistill_agents.commands.ensemble_agents"),
    "polydistill-atari": ("atari", "polydistill_agents.commands.distill_atari"),
    "polydistill-cifar": ("vision", "polydistill.vision.commands.distill_cifar"),
    "polydistill-cifar-ensemble": ("vision", "polydistill.vision.commands.ensemble_cifar"),
    "polydistill-cifar-together": ("vision", "polydistill.vision.commands.together_cifar"),
    "polydistill-compress": ("atari", "polydistill_agents.commands.compress_agent"),
    "polydistill-evaluate": ("atari", "polydistill_agents.commands.evaluate_agent"),
    "polydistill-export": ("atari", "polydistill_agents.commands.export_agent"),
    "polydistill-images": ("timm", "polydistill.image_folders.commands.distill_images"),
    "polydistill-inspect": ("atari", "polydistill_agents.commands.inspect_agent"),
    "polydistill-push": ("runs", "polydistill.hub.push_to_hub"),
    "polydistill-show": ("runs", "polydistill.runs.show"),
    "polydistill-study": ("study", "polydistill.study.commands.study"),
    "polydistill-train-teacher": ("atari", "polydistill_agents.commands.train_teacher"),
}
# the kinds of runs, and the module whose format_summary prints one
REPORTS = {
    "agent": "polydistill_agents.lineage.report",
    "atari": "polydistill_agents.lineage.report",
    "cifar": "polydistill.vision.report",
    "images": "polydistill.image_folders.report",
    "modules": "polydistill.modules.report",
    "tasks": "polydistill_agents.lineage.multitask.report",
}

# those that leave networks, and the module whose make_card tells of one
CARDS = {
    "agent": "polydistill_agents.lineage.model_card",
    "atari": "polydistill_agents.lineage.model_card",
    "cifar": "polydistill.vision.model_card",
    "images": "polydistill.image_folders.model_card",
    "modules": "polydistill.modules.model_card",
    "tasks": "polydistill_agents.lineage.multitask.model_card",
    "teacher": "polydistill_agents.lineage.teacher_card",
}
# trainings that leave another file than summary.json, and the module whose read_training reads it
TRAININGS = {"teacher.json": "polydistill_agents.lineage.teacher_card"}


class WorldEntry(NamedTuple):
    """Where a study finds a world. What is a function or a class is named as ``module:name``, and may be empty.

    Attributes:
        extra: that it needs.
        config: class of its config.
        default: the config where a study names none; empty: the defaults of the class.
        metric: by which arms are compared.
        product: the file of a run that teaches another.
        trains_teachers: whether a run of no students trains a teacher.
        seconds: estimates those of a run.
        younger: keys of its config that are younger than plans of it: where they are off, a plan does not name them.
        ensembles: the module of its ensembles, or empty.
        check: looks at the configs of runs before the first.
        as_teacher: says how the student of a run is named where it teaches.
        as_base: says by which keys an arm has the data of all arms.
        together: whether a command polydistill-<name>-together runs several runs in one process.
    """

    extra: str
    config: str
    default: str
    metric: str
    product: str
    trains_teachers: bool
    seconds: str = ""
    younger: tuple[str, ...] = ()
    ensembles: str = ""
    check: str = ""
    as_teacher: str = ""
    as_base: str = ""
    together: bool = False


# the worlds of studies; their commands are polydistill-<name>, their scripts distill_<name>.py
WORLDS = {
    "agent": WorldEntry(
        "atari",
        "polydistill_agents.lineage.agent_config:AgentConfig",
        "",
        "score",
        "student.zip",
        False,
        "polydistill_agents.lineage.plan:expected_seconds",
        younger=("student.repeat", "student.size", "student.q_weight", "dataset", "save_dataset"),
        ensembles="polydistill_agents.lineage.ensemble",
    ),
    "atari": WorldEntry(
        "atari",
        "polydistill_agents.lineage.config:AtariConfig",
        "",
        "score",
        "student.zip",
        False,
        "polydistill_agents.lineage.plan:expected_seconds",
        younger=("student.repeat", "student.q_weight", "teacher.more", "dataset", "save_dataset"),
        ensembles="polydistill_agents.lineage.ensemble",
    ),
    "cifar": WorldEntry(
        "vision",
        "polydistill.vision.config:CifarConfig",
        "polydistill.vision.commands.distill_cifar:SMOKE",
        "test_error",
        "generation_{last}.safetensors",
        True,
        "polydistill.vision.plan:expected_seconds",
        younger=(
            "student.shared",
            "student.objective_sha256",
            "student.activation_weight",
            "teacher.mean",
            "teacher.std",
        ),
        ensembles="polydistill.vision.ensemble",
        together=True,
    ),
    "images": WorldEntry(
        "timm",
        "polydistill.image_folders.config:ImagesConfig",
        "",
        "test_error",
        "generation_{last}.safetensors",
        True,
        check="polydistill.image_folders.plan:check_configs",
        as_teacher="polydistill.image_folders.config:as_teacher",
        as_base="polydistill.image_folders.config:as_base",
    ),
}


class MissingExtra(ModuleNotFoundError):
    """An extra is not installed; the text is one line that says how to install it."""


def require_extra(extra: str, *modules: str) -> None:
    """Check that the modules of an extra are installed, without importing them.

    Args:
        extra: name in :data:`EXTRAS`.
        modules: those of the extra that are needed; none given: all.

    Raises:
        MissingExtra: one is missing.
    """
    missing = _missing(modules or EXTRAS[extra])
    if missing:
        raise MissingExtra(
            f"this needs the extra {extra} ({_few(missing)} not found): pip install 'polydistill[{extra}]'",
            name=missing[0],
        )


def require_environment(extra: str, *modules: str) -> None:
    """What a script does first: exit with one line and code 2 where this Python cannot run it.

    Args:
        extra: name in :data:`EXTRAS`; with "atari", ``polydistill_agents`` must be of the same clone as this file.
        modules: those of the extra that the script needs; none given: all.

    Raises:
        SystemExit: with code 2; the line ``error: ...`` on standard error says what is missing and how to get it.
    """
    if sys.version_info < OLDEST:
        found, wanted = ".".join(map(str, sys.version_info[:2])), ".".join(map(str, OLDEST))
        exit_with(f"polydistill needs Python {wanted} or later, and {sys.executable} is {found}; {_HOW}")
    missing = _missing(("torch", "numpy", *(modules or EXTRAS[extra])))
    if missing:
        exit_with(
            f"not installed for {sys.executable}: {_few(missing)}; {_HOW}, or in the clone: pip install '.[{extra}]'"
        )
    if extra == "atari":
        _require_agents()
    limit_spinning()  # torch is not imported yet


def run_command(name: str | None = None) -> None:
    """What every console command calls: its main, or one line and code 2 where its extra is missing.

    Args:
        name: of the command; None: as this process was called.
    """
    name = name or Path(sys.argv[0]).stem  # under Windows it ends in .exe
    if name not in COMMANDS:
        exit_with(f"there is no command {name}: there are {', '.join(COMMANDS)}")
    extra, module = COMMANDS[name]
    try:
        require_extra(extra)
    except MissingExtra as error:
        exit_with(f"{name}: {error}")
    limit_spinning()  # torch is not imported yet
    import_module(module).main(called=name)


def _require_agents() -> None:
    """Exit unless ``polydistill_agents`` is installed, from the same clone as this file."""
    spec = find_spec("polydistill_agents")
    if spec is None or spec.origin is None:
        exit_with(f"polydistill is not installed for {sys.executable}; {_HOW}, or in the clone: pip install -e .")
    ours = Path(__file__).resolve().parent.parent / "agents"
    found = Path(spec.origin).resolve().parent
    if (ours / "__init__.py").is_file() and found != ours:
        exit_with(f"polydistill_agents is installed from {found}, not from this clone: pip install -e . in this clone")


def exit_with(message: str) -> NoReturn:
    """Exit with one line and code 2, as a script does."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _few(names: list[str]) -> str:
    """Three names at most, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _missing(modules: tuple[str, ...]) -> list[str]:
    return [module for module in modules if find_spec(module) is None]
