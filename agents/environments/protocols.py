"""Named protocols: how an agent is scored, in a game of Atari or in an environment as it is.

A protocol says where randomness comes from, which buttons are pressed for the agent, and when a game is cut: two
scores compare only under the same one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from polydistill.errors import UserError, require_choice, suggest
from polydistill.learning.lesson import policy_temperature
from polydistill_agents.environments.atari import FRAME_SKIP, MAX_FRAMES

Play = Literal["protocol", "greedy", "sample"]


@dataclass(frozen=True)
class Protocol:
    """How an agent is scored.

    Args:
        epsilon: probability of a random action, drawn for each game apart. Where an agent samples its actions there
            are no others.
        noop_max: 0 to so many no-ops at the start.
        repeat_action_probability: sticky actions.
        fire_on_reset: FIRE is pressed at the start of a game that has it.
        fire_on_life_loss: FIRE is pressed after each lost life.
        source: where the protocol comes from.
        max_frames: games are cut after so many frames.
        samples_logits: agents of logits (PPO, A2C) sample their actions from their policy; else all play greedily.
    """

    epsilon: float
    noop_max: int
    repeat_action_probability: float
    fire_on_reset: bool
    fire_on_life_loss: bool
    source: str
    max_frames: int = MAX_FRAMES
    samples_logits: bool = False

    @property
    def max_steps(self) -> int:
        """Games are cut after so many agent steps."""
        return self.max_frames // FRAME_SKIP

    @property
    def games_differ(self) -> bool:
        """Whether the games of one agent without epsilon differ."""
        return bool(self.noop_max or self.repeat_action_probability)


@dataclass(frozen=True)
class OwnProtocol:
    """An environment as it is: its games differ by their seeds, and agents play greedily unless asked to sample.

    Args:
        max_steps: games are cut after so many steps.
        epsilon: probability of a random action.
        source: where the protocol comes from.
    """

    max_steps: int
    epsilon: float = 0.0
    source: str = "the environment as it is, from seeded starts"
    samples_logits: bool = False
    games_differ: bool = True


AnyProtocol = Protocol | OwnProtocol

PROTOCOLS: dict[str, Protocol] = {
    "rusu": Protocol(0.05, 30, 0.0, True, False, "Rusu et al. 2016, section 4 (FIRE at the start: ours)"),
    "machado": Protocol(0.0, 0, 0.25, False, False, "Machado et al. 2018: sticky actions (the agent's own action set)"),
    "zoo": Protocol(
        *(0.01, 30, 0.0, True, True),
        "rl-baselines3-zoo: SB3's AtariWrapper; epsilon 0.01, PPO and A2C sample",
        samples_logits=True,
    ),
}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}{suggest(name, PROTOCOLS)} (there are {', '.join(PROTOCOLS)})")
    return PROTOCOLS[name]


def sampling_temperature(play: str, protocol: AnyProtocol, kind: str, temperature: float) -> float | None:
    """At which temperature an agent samples its actions; None: it plays greedily.

    Args:
        play: "greedy", "sample", or "protocol": as the protocol has it for agents of this kind.
        protocol: that is played under.
        kind: of the agent's scores, "q_values" or "logits".
        temperature: T > 0 of Q-values, in their unit. Logits are taken at 1.

    Raises:
        ValueError: another ``play``.
    """
    require_choice("play", play, get_args(Play))
    if play == "greedy" or (play == "protocol" and not (protocol.samples_logits and kind == "logits")):
        return None
    return policy_temperature(kind, temperature)
