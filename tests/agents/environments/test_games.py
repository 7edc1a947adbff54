"""Names of games: whatever gymnasium registers, and what people type, is found; what is none gets the nearest name."""

from __future__ import annotations

import ale_py
import gymnasium
import pytest
from ale_py import roms
from ale_py.registration import rom_id_to_name

from polydistill.errors import UserError
from polydistill_agents.commands.scoring import AgentEvaluationConfig
from polydistill_agents.environments.games import check_game
from polydistill_agents.environments.task import open_task
from polydistill_agents.files.inspection import AgentInspectionConfig
from polydistill_agents.lineage.config import AtariConfig
from polydistill_agents.teachers.training_config import TeacherTrainingConfig
from polydistill_agents.teachers.zoo import find_teacher

gymnasium.register_envs(ale_py)
REGISTERED = {
    name: spec.kwargs["game"] for name, spec in gymnasium.registry.items() if str(spec.entry_point).startswith("ale_py")
}


def test_every_rom_id_and_its_camel_case_name_is_that_game():
    for rom_id in roms.get_all_rom_ids():
        camel = rom_id_to_name(rom_id)
        for name in (rom_id, camel, camel.lower(), rom_id.upper(), rom_id.replace("_", "-"), f"{camel}NoFrameskip-v4"):
            assert check_game(name) == rom_id


def test_every_environment_that_ale_py_registers_is_its_game():
    assert len(REGISTERED) > 200
    assert {name: check_game(name) for name in REGISTERED} == REGISTERED


@pytest.mark.parametrize(
    ("name", "game"),
    [
        ("PongNoFrameskip-v4", "pong"),
        ("ALE/Pong-v5", "pong"),
        ("ale/pong-v5", "pong"),
        ("PongDeterministic-v4", "pong"),
        (" Pong ", "pong"),
        ("Ms. Pac-Man", "ms_pacman"),
        ("ms-pacman", "ms_pacman"),
        ("MsPacman", "ms_pacman"),
        ("Pacman", "pacman"),
        ("Q*bert", "qbert"),
        ("SpaceInvadersNoFrameskip-v0", "space_invaders"),
        ("up'n down", "up_n_down"),
    ],
)
def test_what_people_type_is_understood(name, game):
    assert check_game(name) == game


@pytest.mark.parametrize(
    ("name", "near"),
    [("MsPacmann", "ms_pacman"), ("PonggNoFrameskip-v4", "pong"), ("ALE/SpaceInvader-v5", "space_invaders")],
)
def test_the_nearest_game_is_found_behind_the_ornaments_of_a_name(name, near):
    with pytest.raises(UserError, match=f"did you mean {near}\\?"):
        check_game(name)


@pytest.mark.parametrize("name", ["", "-v4", "ALE/", "NoFrameskip-v4", "CartPole-v1", "-ram", "po\nng\tx"])
def test_what_is_no_game_is_one_line(name):
    with pytest.raises(UserError, match=r"^unknown game .*ROM ids, like ms_pacman"):
        check_game(name)


@pytest.mark.parametrize("name", ["Pong-ram-v4", "Pong-ramNoFrameskip-v4", "ALE/Pong-ram-v5", "pong_ram"])
def test_ram_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=r"shows the RAM: agents here see frames, as in --game pong$"):
        check_game(name)


def test_configs_store_the_rom_id_and_everything_that_takes_a_game_takes_the_name():
    name = "MsPacmanNoFrameskip-v4"
    assert AtariConfig(game=name).game == "ms_pacman"
    assert AtariConfig(game=name).resolve().game == "ms_pacman"
    assert AgentEvaluationConfig(file="a.zip", game=name).game == "ms_pacman"
    assert AgentInspectionConfig(file="a.zip", evaluate=name).evaluate == "ms_pacman"
    assert TeacherTrainingConfig(game=name).game == "ms_pacman"
    assert open_task(name).human_normalized(6951.6) == pytest.approx(1.0)
    assert find_teacher("ALE/Pong-v5").name == "dqn-pong.zip"
