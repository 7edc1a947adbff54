"""A game as a GIF: what the player sees, not what the agent sees.

The agent's environment shows 84 x 84 grey frames; a second emulator with the same seed and the same actions goes
beside it and gives the screen in colour. Equal seeds and actions give equal games, so the two never part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray
from PIL import Image

from polydistill.disk import disk_errors
from polydistill_agents.environments.atari import FRAME_SKIP
from polydistill_agents.environments.evaluation import choose_actions
from polydistill_agents.environments.protocols import Protocol
from polydistill_agents.environments.task import AtariTask
from polydistill_agents.networks.kinds import ScoreFunction

SCREEN = (210, 160)  # height, width in pixels
GAP = 8  # pixels between two games
MILLISECONDS = round(1000 * FRAME_SKIP / 60)  # one agent step


def record_game(
    agent: ScoreFunction,
    task: AtariTask,
    protocol: Protocol,
    *,
    seed: int = 0,
    max_steps: int = 600,
    device: torch.device | str = "cpu",
    n_actions: int | None = None,
    temperature: float | None = None,
) -> NDArray[np.uint8]:
    """The screens of one game from its start, ``(steps, 210, 160, 3)`` uint8 RGB; at most ``max_steps`` of them.

    The agent has ``n_actions``, by default the task's own. With a ``temperature`` it samples them, without the
    protocol's epsilon.
    """
    epsilon = protocol.epsilon if temperature is None else 0.0
    env_seed, coin_seed = np.random.SeedSequence(seed).generate_state(2)
    env = task.make_env(1, seed=int(env_seed), n_threads=1, n_actions=n_actions, protocol=protocol)
    coin = np.random.default_rng(coin_seed)
    observations = env.reset()
    height, width = SCREEN
    colour = env.emulator_options | {"grayscale": False, "stack_num": 1, "img_height": height, "img_width": width}
    player = AtariVectorEnv(env.game, 1, **colour)
    screens = [player.reset(seed=env.reset_seeds)[0].reshape(height, width, 3).copy()]
    for _ in range(max_steps - 1):
        scores = agent(torch.from_numpy(observations).to(device))
        observations, _, dones, _ = env.step(choose_actions(scores, epsilon, coin, temperature))
        if dones[0]:
            break
        screens.append(player.step(env.sent_actions)[0].reshape(height, width, 3).copy())
    env.close()
    return np.stack(screens)


def write_gif(path: Path, games: Sequence[NDArray[np.uint8]], *, every: int = 2, colours: int = 32) -> None:
    """Write games side by side; a game that ends before the longest stands still.

    Args:
        path: the file; its folder must exist.
        games: each ``(steps, height, width, 3)`` uint8, of equal height and width.
        every: steps per picture; the GIF keeps the game's speed.
        colours: size of the palette, up to 256. Atari games show few.

    Raises:
        UserError: the disk refused.
    """
    steps = max(map(len, games))
    pictures = []
    for step in range(0, steps, every):
        columns = [game[min(step, len(game) - 1)] for game in games]
        gap = np.zeros((columns[0].shape[0], GAP, 3), dtype=np.uint8)
        row = [part for column in columns for part in (gap, column)][1:]
        pictures.append(Image.fromarray(np.concatenate(row, axis=1)))
    palette = pictures[len(pictures) // 2].quantize(colours)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    with disk_errors(path):
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=every * MILLISECONDS, loop=0)
