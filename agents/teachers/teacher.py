"""A frozen source of scores, of known kind: what students learn from."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn

from polydistill.device import without_autocast
from polydistill.errors import UserError
from polydistill_agents.environments.task import Task
from polydistill_agents.networks.architecture import Architecture, architecture_of
from polydistill_agents.networks.fitting import space_fits, tell_misfit, tell_space
from polydistill_agents.networks.kinds import SCORE_KINDS, ScoreFunction
from polydistill_agents.networks.nature import Size, is_nature, size_of
from polydistill_agents.networks.normalized import Normalized, Statistics
from polydistill_agents.networks.observations import Tensors, example, leaves, to_tensors
from polydistill_agents.networks.quantiles import QuantileNetwork

Rows = NDArray[Any] | Tensor | None  # which games: indices, or None for all


class Teacher:
    """A frozen source of scores.

    Args:
        function: from observations as they are stored, ``(batch, ...)`` or a table of them, to ``(batch, n_actions)``
            scores.
        kind: "q_values" or "logits".
        network: the network behind ``function``, where there is one. It is frozen and put in eval mode.
        masks: whether it learned with the environment's masks of actions.

    Attributes:
        kind: as given.
        network: hashed, counted, and copied in shape by an identical student. None for a bare function.
        size: widths of the network if it is a Nature-CNN that sees pixels (of a QR-DQN: without its quantiles),
            else None.
        observation_space: of what it sees; None where nothing tells it.
        masks: as given. Its target is then the masked policy
            (:func:`~polydistill_agents.environments.masks.mask_scores`); it applies none itself.
        has_memory: whether its scores hang on the steps before; see :meth:`label`.
        recorded: whether it only says again what was said in play that is over, see
            :class:`~polydistill_agents.teachers.recorded.RecordedTeacher`.
        n_rows: steps of all games, one after another, that it can label.
        input_statistics: of a vector agent behind VecNormalize, those of the raw observations; else None.
    """

    has_memory = recorded = False
    n_rows = sys.maxsize

    def __init__(
        self,
        function: ScoreFunction,
        *,
        kind: str = "q_values",
        network: nn.Module | None = None,
        masks: bool = False,
    ) -> None:
        if kind not in SCORE_KINDS:
            raise ValueError(f"kind must be one of {SCORE_KINDS}, got {kind!r}")
        self._function, self.kind, self.network, self.masks = function, kind, network, masks
        self._device = torch.device("cpu")
        self._modules: list[nn.Module] = []
        if network is not None:
            network.eval().requires_grad_(False)
            self._modules = list(network.modules())
            self._device = next((parameter.device for parameter in network.parameters()), self._device)
        inner = network.quantile_net if isinstance(network, QuantileNetwork) else network
        self.size: Size | None = size_of(inner) if isinstance(inner, QNetwork) and sees_pixels(inner) else None
        space = getattr(network, "observation_space", None)
        self.observation_space: spaces.Space[Any] | None = space if isinstance(space, spaces.Space) else None
        self.input_statistics: Statistics | None = None
        if isinstance(network, Normalized) and len(network.observation_space.shape) < 3:
            self.input_statistics = network.statistics

    @property
    def architecture(self) -> Architecture | None:
        """Widths of its network, as far as a student can have them; None where it is another."""
        return architecture_of(self.network)

    @torch.no_grad()
    def __call__(self, observations: Tensors) -> Tensor:
        """Scores ``(batch, n_actions)`` float32 of observations as they are stored; nothing is remembered."""
        with self._asking(observations):
            return self._function(observations).float()

    @contextlib.contextmanager
    def _asking(self, observations: Tensors) -> Iterator[None]:
        """Eval mode, without autocast."""
        if self.network is not None and any(module.training for module in self._modules):
            self.network.eval()  # someone put it into train mode
        with without_autocast(leaves(observations)[0].device.type):
            yield

    def to(self, device: torch.device | str) -> Teacher:
        """Move the network, where there is one, to ``device``, where observations will come from."""
        self._device = torch.device(device)
        if self.network is not None:
            self.network.to(device)
        return self

    # ---- memory: a plain teacher has none

    def begin(self, n_games: int) -> None:
        """Forget: ``n_games`` games, none of which has begun."""

    def label(self, observations: Tensors, starts: Any, rows: Rows = None) -> Tensor:
        """Scores ``(rows, n_actions)`` float32 of the next step of these games; a memory of them moves on.

        Args:
            observations: one of each game.
            starts: ``(rows,)`` bool: True where a new game begins.
            rows: which games of those that :meth:`begin` counted; None: all.
        """
        return self(observations)

    def memory(self) -> Any:
        """What it remembers, as plain tensors on the CPU; None where that is nothing."""
        return None

    def remember(self, state: Any) -> None:
        """Go on with what :meth:`memory` gave."""

    # ---- whether it fits

    def count_actions(self, task: Task) -> int:
        """How many actions of ``task`` it scores, its own or all; it is asked, and no environment is opened.

        Raises:
            UserError: it is of another task, or fails.
        """
        task = task.for_teacher()
        self._check_observations(task.observation_space)
        actions = task.actions_of(self.probe(task.observation_space).shape[1])
        self.check_fits(task.observation_space, actions)
        return int(actions.n)

    def check_fits(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Compare the teacher's inputs and outputs with those of an environment, and ask it once.

        Raises:
            UserError: they differ, or the teacher fails.
        """
        if not isinstance(action_space, spaces.Discrete):
            raise UserError(f"a teacher needs discrete actions, the environment has {action_space}")
        self._check_observations(observation_space)
        scores = self.probe(observation_space)
        n_actions = int(action_space.n)
        if scores.shape[1] != n_actions:
            full = ", or on the full set of 18 actions" if 18 in (n_actions, scores.shape[1]) else ""
            raise UserError(
                f"the teacher scores {scores.shape[1]} actions, the environment has {n_actions}: was it trained on "
                f"another one{full}?"
            )
        if bool(scores.isnan().any()):
            raise UserError("the teacher's scores are not numbers (NaN)")

    def _check_observations(self, space: spaces.Space[Any]) -> None:
        if self.observation_space is not None and not space_fits(self.observation_space, space):
            raise UserError(tell_misfit(self.observation_space, space))

    def probe(self, space: spaces.Space[Any]) -> Tensor:
        """Its scores of two observations, zeros or near them: ``(2, actions)``.

        Raises:
            UserError: it fails, or gives something else than a row of each.
        """
        try:
            scores = self(to_tensors(example(space, 2), self._device))
        except UserError:
            raise
        except Exception as error:  # the teacher may be any code
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"the teacher fails on observations {tell_space(space)}: {type(error).__name__}: {reason}"
            ) from error
        if scores.dim() != 2 or len(scores) != 2:
            raise UserError(
                f"the teacher must give one row of scores per observation, gave {tuple(scores.shape)} for 2"
            )
        return scores


def sees_pixels(network: nn.Module) -> bool:
    """Whether it is a Nature-CNN of uint8 frames, as ``compute_scores`` computes it."""
    return is_nature(network) and is_image_space(cast(QNetwork, network).observation_space)
