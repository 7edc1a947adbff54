"""Every published config is a command that works: the one in its header, tried with ``--dry_run``."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from polydistill.config.plain_yaml import load_yaml
from tests.image_folders.samples import write_pictures
from tests.operators import define_operators

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SCRIPTS_OF_FOLDER = {
    "agents": {"distill_agent.py"},
    "atari": {"distill_atari.py", "train_teacher.py"},
    "cifar": {"distill_cifar.py"},
    "images": {"distill_images.py"},
    "study": {"study.py"},
    "smoke": {
        "compress_agent.py",
        "distill_atari.py",
        "train_teacher.py",
        "distill_cifar.py",
        "distill_images.py",
        "study.py",
    },
}
FILES = sorted(CONFIGS.rglob("*.yaml"))
COMMAND = re.compile(r"^python scripts/(\S+\.py)\b.*$", re.MULTILINE)


def header_command(text: str) -> list[str]:
    """The words of ``python scripts/NAME.py ...`` in the comment at the top of a config, from the script's name on.

    Raises:
        ValueError: the header holds no such command.
    """
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    command = COMMAND.search("\n".join(lines).replace("\\\n", ""))
    if command is None:
        raise ValueError("the header comment holds no line `python scripts/NAME.py --config ...`")
    return shlex.split(command.group(0), comments=True)[1:]


def test_configs_lie_in_the_known_folders() -> None:
    assert FILES, "no config at all: the tests below would pass by checking nothing"
    strays = [path for path in CONFIGS.rglob("*") if path.is_file() and path not in FILES]
    assert strays == []
    assert all(path.parent.parent == CONFIGS for path in FILES)
    assert {path.parent.name for path in FILES} <= SCRIPTS_OF_FOLDER.keys()
    folders = {path.name for path in CONFIGS.iterdir()}
    assert folders == {path.parent.name for path in FILES}, "a folder without a config"


def write_agents(config: Path, folder: Path) -> str:
    """Untrained agents of several games, as ``--games`` names them."""
    from polydistill_agents.environments.games import count_actions
    from polydistill_agents.files.sb3_zip import write_dqn_zip
    from tests.agents.samples import make_network

    games = list(load_yaml(config)["games"])
    for game in games:
        write_dqn_zip(folder / f"{game}.zip", make_network(n_actions=count_actions(game)))
    return "{" + ", ".join(f"{game}: {folder / game}.zip" for game in games) + "}"


def write_agent(config: Path, folder: Path) -> str:
    """An untrained agent of the config's environment, or of Breakout."""
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.envs import FakeImageEnv

    if config.parent.name == "atari":
        game = FakeImageEnv(action_dim=4, screen_height=84, screen_width=84, n_channels=4, channel_first=True)
        DQN("CnnPolicy", game, buffer_size=1, device="cpu", seed=0).save(folder / "agent.zip")
        return str(folder / "agent.zip")
    text = config.read_text(encoding="utf-8")
    env = re.findall(r"^env: (.*)$", text, re.MULTILINE)[0]
    if "policy_kl_q" in text:  # of a teacher of Q-values
        DQN("MlpPolicy", env, buffer_size=1, device="cpu", seed=0).save(folder / "agent.zip")
        return str(folder / "agent.zip")
    PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu", seed=0).save(folder / "agent.zip")
    return str(folder / "agent.zip")


def write_folder(folder: Path) -> str:
    """A folder of pictures, enough for a batch."""
    if find_spec("timm") is None:
        pytest.skip("the extra timm is not installed")
    define_operators()
    for part in ("train", "val"):
        write_pictures(folder / part, 24)
    return str(folder)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(CONFIGS)) for path in FILES])
def test_the_command_in_the_header_is_accepted_by_its_script(
    path: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_threads_restored: None
) -> None:
    script, *options = header_command(path.read_text(encoding="utf-8"))
    if Path(script).name in {"compress_agent.py", "study.py"}:
        pytest.importorskip("matplotlib", reason="the extra study is not installed")
        monkeypatch.setattr("polydistill.study.commands.study.require_given", lambda *_: None)  # the user's own agents
    assert Path(script).name in SCRIPTS_OF_FOLDER[path.parent.name]
    assert options[:2] == ["--config", str(path.relative_to(root))], "the command must name this very file"

    out = tmp_path / "out"
    monkeypatch.chdir(root)
    if Path(script).name == "distill_images.py":
        options[options.index("--data.root") + 1] = write_folder(tmp_path)
    elif "--settings.data.root" in options:
        options[options.index("--settings.data.root") + 1] = write_folder(tmp_path)
    elif "--teacher.path" in options:  # the user's own agent
        options[options.index("--teacher.path") + 1] = write_agent(path, tmp_path)
    if "games" in load_yaml(path):
        options += ["--games", write_agents(path, tmp_path)]
    monkeypatch.setattr(sys, "argv", [script, *options, "--out", str(out), "--dry_run"])
    code: object = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    assert code == 0, f"{script} refused {path.name}: see its line in the captured output"
    assert not out.exists(), "a dry run writes nothing"


def test_the_config_of_cartpole_has_the_defaults_of_its_script(root: Path) -> None:
    from polydistill.config.parsing import parse
    from polydistill_agents.lineage.agent_config import AgentConfig

    def read(*words: str) -> AgentConfig:
        options = {"program": "x", "description": "", "default_name": None}
        return parse(AgentConfig, [*words, "--teacher.path", "a.zip"], **options).config

    assert read("--config", str(root / "configs" / "agents" / "cartpole.yaml")) == read("--env", "CartPole-v1")


@pytest.mark.parametrize(
    "text",
    [
        "game: pong\n",
        "# Pong, by KL\ngame: pong\n",
        "game: pong\n# python scripts/distill_atari.py --config a.yaml\n",
        "# see scripts/distill_atari.py\n",
    ],
)
def test_a_config_without_its_command_is_found(text: str) -> None:
    with pytest.raises(ValueError, match="holds no line"):
        header_command(text)


def test_the_command_may_be_broken_over_lines() -> None:
    text = (
        "# Pong.\n#\n#   python scripts/distill_atari.py \\\n#     --config a.yaml --seed 1  # a note\n\ngame: pong\n"
    )
    assert header_command(text) == ["scripts/distill_atari.py", "--config", "a.yaml", "--seed", "1"]


def test_every_student_of_another_architecture_in_the_papers_tables_has_a_config() -> None:
    from polydistill.vision.networks.sharing import ROLES
    from polydistill.vision.paper import CROSS, SHARING

    found = [load_yaml(path) for path in FILES if path.parent.name == "cifar"]
    students = {
        (each["teacher"]["network"], each["student"]["network"], tuple(each["student"].get("shared", ())))
        for each in found
        if each["data"]["name"] == "cifar100" and "network" in each["student"]
    }
    rows = {(*pair, ()) for pair in CROSS} | {(*pair, ROLES) for pair in SHARING}
    assert students == rows
