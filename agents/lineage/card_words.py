"""What a model card says of an agent in words: how it was scored, how it is opened, what its scores are."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polydistill.config.plain_yaml import parse_value
from polydistill.hub.card import Product, Result
from polydistill.hub.markup import block, code
from polydistill.hub.places import public
from polydistill_agents.environments.atari import FRAME_SKIP
from polydistill_agents.environments.protocols import Protocol, get_protocol
from polydistill_agents.files.compact import ENDING
from polydistill_agents.files.sb3_zip import read_agent
from polydistill_agents.files.sources import find, read_compact
from polydistill_agents.lineage.report import count_games

PLAYED = "environment options, wrappers and limits of its own"
OF_INTERVALS = (
    "Intervals are 95% bootstrap intervals over the games of this run. They tell how sure the score of these weights "
    "is, not what another seed would give."
)


def is_atari(config: Mapping[str, Any]) -> bool:
    """Whether a game of Atari was played, by the config of a run of one task."""
    return "game" in config


def gym_id(config: Mapping[str, Any]) -> str:
    """The id under which others know what was played; of Atari the one that has the protocol's frames."""
    if not is_atari(config):
        return str(config["env"])
    name = "".join(part.capitalize() for part in config["game"].split("_"))
    sticky = get_protocol(config["evaluation"]["protocol"]).repeat_action_probability
    return f"ALE/{name}-v5" if sticky else f"{name}NoFrameskip-v4"


def changes(config: Mapping[str, Any]) -> list[str]:
    """What makes the environment another than the one of its id."""
    if is_atari(config):
        return []
    found = [*config["env_kwargs"], *config["wrappers"]]
    if config["env_max_steps"]:
        found.append(f"games of at most {config['env_max_steps']:,} steps")
    return [str(public(text)) for text in found]


def mean_reward(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> Result:
    """The score as leaderboards of reinforcement learning take it: mean and standard deviation over the games."""
    spread = float(np.std(metrics["scores"]))
    changed = changes(config)
    name = gym_id(config) + (f" ({', '.join(changed)})" if changed else "")
    return Result(gym_id(config), name, "mean_reward", f"{metrics['score_mean']:.2f} +/- {spread:.2f}")


def protocol_in_words(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[str]:
    """How the games were played, a line each."""
    games = f"{count_games(metrics['episodes'])} of each, from starts of their own"
    if not is_atari(config):
        lines = [f"{games}, in {code(config['env'])} as it is.", *([] if not changes(config) else [_changed(config)])]
        return [*lines, _play(config["evaluation"]["play"], "greedy")]
    rules = get_protocol(config["evaluation"]["protocol"])
    lines = [f"{games}, under the protocol {code(config['evaluation']['protocol'])}: {rules.source}."]
    return [*lines, *_rules(rules), _play(config["evaluation"]["play"], "protocol")]


def _changed(config: Mapping[str, Any]) -> str:
    return f"It has {PLAYED}: {', '.join(map(code, changes(config)))}."


def _rules(rules: Protocol) -> list[str]:
    lines = [f"An agent acts in every {FRAME_SKIP}th frame, and sees the last {FRAME_SKIP} of these, in grey."]
    if rules.noop_max:
        lines.append(f"A game begins with 0 to {rules.noop_max} no-ops.")
    if rules.repeat_action_probability:
        lines.append(f"Sticky actions: with probability {rules.repeat_action_probability:g} the last one is repeated.")
    if rules.epsilon:
        lines.append(f"With probability {rules.epsilon:g} an action is random.")
    if rules.fire_on_reset:
        lines.append("FIRE is pressed at the start" + (" and after a lost life." if rules.fire_on_life_loss else "."))
    return [*lines, f"Games are cut after {rules.max_frames:,} frames. Points are not clipped."]


def _play(play: str, default: str) -> str:
    """How actions come from scores."""
    if play == "sample":
        return "Actions are drawn from the policies."
    sampled = " Actor-critics draw theirs from their policy where the protocol says so." if play == default else ""
    return "The action of the largest score is taken." + (sampled if play == "protocol" else "")


def score_kind_of(path: Path) -> str:
    """The kind of the scores of a student's file.

    Raises:
        UserError: it is missing, damaged, or no student.
    """
    if path.suffix == ENDING:
        student = read_compact(find(path))
        return "q_values" if student is None else student.kind
    return read_agent(path).score_kind


def kind_in_words(kind: str, file: str) -> str:
    """What the scores are, and what must not be done with them."""
    if kind == "q_values" and file.endswith(ENDING):
        return "Its outputs are Q-values. It is wider than what `DQN.load` of Stable-Baselines3 builds."
    if kind == "q_values":
        return (
            "Its outputs are Q-values. Stock Stable-Baselines3 may learn on from the zip: "
            f"{code(f'DQN.load({file!r}, env=env, buffer_size=100_000).learn(1_000_000)')}."
        )
    return (
        "Its outputs are logits of a policy, not Q-values, though Stable-Baselines3 calls the network a DQN's: play "
        "it, and do not go on with `learn`, whose temporal differences would mean nothing."
    )


def how_to_open(config: Mapping[str, Any], product: Path, where: str) -> str:
    """A program that opens the agent and plays a game, and a command that scores it.

    Args:
        config: of a run of one task.
        product: its file.
        where: as ``hf://org/name``; empty: beside the card.
    """
    file = repr(product.name)
    imports, place = [], file
    if where:
        imports.append("from huggingface_hub import hf_hub_download")
        place = f"hf_hub_download({where.removeprefix('hf://')!r}, {file})"
    if product.suffix == ENDING:
        imports.append("from polydistill_agents import PolicyDistillation")
        opened = f"agent = PolicyDistillation.load({place})"
    else:
        imports.append("from stable_baselines3 import DQN")
        opened = f"agent = DQN.load({place})"
    game_imports, game = _one_game(config)
    program = "\n".join([*sorted([*imports, *game_imports], key=_by_module), "", opened, *game])
    named = f"{where}/{product.name}" if where else product.name
    task = f"--game {config['game']}" if is_atari(config) else f"--env {shlex.quote(config['env'])}"
    if not is_atari(config):
        package, wrappers = config["env_package"], config["wrappers"]
        task += f" --env_package {shlex.quote(package)}" if package else ""
        task += f" --wrappers {shlex.quote('[' + ', '.join(wrappers) + ']')}" if wrappers else ""
    command = f"polydistill-evaluate {shlex.quote(named)} {task}"
    return "\n\n".join(
        [
            block(program, "python"),
            "polydistill reads the same file without executing anything in it, as a teacher of others too, and scores "
            "it:",
            block(command, "sh"),
        ]
    )


def _by_module(line: str) -> tuple[bool, str]:
    """Modules that are imported whole come first, as formatters put them."""
    return line.startswith("from "), line.split()[1]


def _one_game(config: Mapping[str, Any]) -> tuple[list[str], Sequence[str]]:
    """Imports and lines that play a game; nothing behind wrappers, which the reader has to put around it."""
    if is_atari(config):
        lines = [
            f"env = AtariVecEnv({config['game']!r}, n_envs=1)",
            "seen, points, over = env.reset(), 0.0, False",
            "while not over:",
            "    actions, _ = agent.predict(seen, deterministic=True)",
            "    seen, rewards, ended, _ = env.step(actions)",
            "    points, over = points + float(rewards[0]), bool(ended[0])",
            "print(points)",
        ]
        return ["from polydistill_agents import AtariVecEnv"], ["", *lines]
    if config["wrappers"]:
        return [], ["# it sees its environment behind the wrappers that are named above"]
    options = dict(text.split("=", 1) for text in config["env_kwargs"])
    given = "".join(f", {name}={parse_value(value)!r}" for name, value in options.items())
    package = config["env_package"]
    lines = [
        f"env = gym.make({config['env']!r}{given})",
        "seen, _ = env.reset()",
        "points, over = 0.0, False",
        "while not over:",
        "    action, _ = agent.predict(seen, deterministic=True)",
        "    seen, reward, ended, cut, _ = env.step(int(action))",
        "    points, over = points + float(reward), ended or cut",
        "print(points)",
    ]
    return ["import gymnasium as gym", *([f"import {package}"] if package else [])], ["", *lines]


def student_products(out: Path, stem: str, what: str) -> list[Product]:
    """The files of a student that are there, the one that most programs open first."""
    found = [
        Product(out / f"{stem}.zip", f"{what}, for `DQN.load` of Stable-Baselines3"),
        Product(out / f"{stem}{ENDING}", f"{what}, in its own widths, for `as_teacher` of polydistill"),
    ]
    return [product for product in found if product.path.is_file()]
