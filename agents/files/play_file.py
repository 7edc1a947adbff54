"""A data set of play as one file, from which its games are played again: seeds, actions, the teacher's scores.

The file is one of safetensors: tables of numbers, and one text of JSON, under ``KEY`` in its metadata, which says what
they are (:class:`PlayHeader`). docs/datasets.md has the format. Contract: reading executes nothing; sizes are checked
before memory is taken; a file that is cut, foreign or changed is one line; equal play gives equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from polydistill.config.fields import check_fields
from polydistill.disk import atomic_write, disk_errors
from polydistill.errors import UserError
from polydistill.provenance import weights_sha256
from polydistill_agents.environments.checksums import EVERY
from polydistill_agents.files.sb3_data import ACTIVATIONS
from polydistill_agents.networks.architecture import Architecture
from polydistill_agents.networks.nature import Size
from polydistill_agents.networks.normalized import Statistics

KEY, SHA256 = "polydistill.play", "content_sha256"
FORMAT = 1
MAX_HEADER_BYTES = 2**20
WIDEST, DEEPEST = 2**16, 64  # units of a layer, and layers, of a network that a file may ask for
ACTIVATION_NAMES = {kind.__name__: kind for kind in ACTIVATIONS.values()}
TABLES = {  # name -> (types, axes)
    "actions": (("uint8", "int32"), 2),
    "scores": (("float32",), 3),
    "starts": (("bool",), 2),
    "reset_seeds": (("int64",), 1),
    "checksums": (("uint8",), 2),
    "teacher_games": (("float64",), 1),
}
STATISTICS = ("input_mean", "input_variance")


@dataclass(frozen=True)
class PlayHeader:
    """What the numbers of a data set are.

    Attributes:
        format: of the file.
        environment: what was played: settings of the games, as ``SeededVecEnv.settings`` has them.
        versions: of the packages that played, and of others that a reader may ask for.
        checked_every: steps of all games between two checksums.
        epsilon: probability of a random action.
        play: how the other actions were chosen, from the policy of whoever acted.
        beta: probability that the teacher acted, at the start; else a student did.
        beta_end: at the end; None: it was constant.
        kind: of the teacher's scores.
        temperature: at which its policy was taught.
        sha256: of the teacher's weights; None of a bare function.
        parameters: of the teacher; likewise.
        has_memory: whether the teacher remembers earlier steps.
        network: its widths, for a student of the same ones: see :meth:`of_architecture`; None where it is another.
        clip, scale_epsilon: of the statistics of its inputs; None where it has none.
        protocol: under which its games were scored.
        acts: how it acted there.
        truncated, n_actions, game_actions, invalid_share: of these games, as of an ``Evaluation``.
        masked_mean: its mean score without invalid actions; None where the environment does not say which these are.
    """

    format: int
    environment: dict[str, Any]
    versions: dict[str, Any]
    checked_every: int
    epsilon: float
    play: Literal["greedy", "sample"]
    beta: float
    beta_end: float | None
    kind: Literal["q_values", "logits"]
    temperature: float
    sha256: str | None
    parameters: int | None
    has_memory: bool
    network: dict[str, Any] | None
    clip: float | None
    scale_epsilon: float | None
    protocol: str
    acts: Literal["greedy", "sample"]
    truncated: int
    n_actions: int
    game_actions: int
    invalid_share: float | None
    masked_mean: float | None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.temperature <= 0 or not isinstance(self.environment.get("n_envs"), int):
            raise ValueError(f"{self.temperature=}, {self.environment=}")

    @staticmethod
    def of_architecture(own: Architecture | None) -> dict[str, Any] | None:
        """Widths and activation as plain values."""
        if own is None:
            return None
        channels, hidden = (None, None) if own.size is None else (list(own.size.channels), own.size.hidden)
        widths = {"channels": channels, "hidden": hidden, "cnn_output_dim": own.cnn_output_dim}
        return {**widths, "net_arch": list(own.net_arch), "activation": own.activation.__name__}

    @property
    def architecture(self) -> Architecture | None:
        """The teacher's.

        Raises:
            ValueError, LookupError, TypeError: it is none.
        """
        if self.network is None:
            return None
        channels, hidden, dim = (self.network[name] for name in ("channels", "hidden", "cnn_output_dim"))
        net_arch = tuple(self.network["net_arch"])
        size = None if channels is None else Size(tuple(channels), hidden)
        widths = [*net_arch, *(() if size is None else (*size.channels, hidden)), *(() if dim is None else (dim,))]
        if not all(type(width) is int and 1 <= width <= WIDEST for width in widths) or len(widths) > DEEPEST:
            raise ValueError(f"widths {widths}")
        if size is not None and len(size.channels) != 3:
            raise ValueError(f"channels {size.channels}")
        return Architecture(size, dim, net_arch, ACTIVATION_NAMES[self.network["activation"]])


class PlayData(NamedTuple):
    """A data set: ``rows`` steps of ``n_envs`` games at once.

    Attributes:
        header: what the numbers are.
        actions: ``(rows, n_envs)`` that were taken.
        scores: ``(rows, n_envs, n_actions)`` float32 of the teacher.
        starts: ``(rows, n_envs)`` where the observations before the step are the first of a game.
        reset_seeds: ``(n_envs,)`` int64 with which the games began.
        checksums: ``(n, 32)`` uint8, see :mod:`~polydistill_agents.environments.checksums`.
        teacher_games: ``(games,)`` float64, scores of the teacher's games.
        statistics: of the teacher's inputs; None where it has none.
    """

    header: PlayHeader
    actions: NDArray[np.integer[Any]]
    scores: NDArray[np.float32]
    starts: NDArray[np.bool_]
    reset_seeds: NDArray[np.int64]
    checksums: NDArray[np.uint8]
    teacher_games: NDArray[np.float64]
    statistics: Statistics | None

    @property
    def steps(self) -> int:
        """Of play, of all games together."""
        return int(self.actions.size)

    @property
    def name(self) -> str:
        """Of the game or environment."""
        environment = self.header.environment
        return str(environment.get("game", environment.get("environment")))


def write_play(path: Path, data: PlayData) -> None:
    """Write the file whole or not at all; its folder is made where it is missing.

    Raises:
        UserError: the disk refused.
    """
    n_actions = data.scores.shape[2]
    tables: dict[str, NDArray[Any]] = {name: getattr(data, name) for name in TABLES}
    tables["actions"] = data.actions.astype(np.uint8 if n_actions <= 256 else np.int32)
    if data.statistics is not None:
        tables |= {"input_mean": data.statistics.mean, "input_variance": data.statistics.variance}
    tables = {name: np.ascontiguousarray(values) for name, values in tables.items()}
    told = asdict(data.header)
    text = json.dumps({**told, SHA256: _content_sha256(told, tables)}, sort_keys=True)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, save(tables, {KEY: text}))


def _content_sha256(told: Mapping[str, Any], tables: Mapping[str, NDArray[Any]]) -> str:
    """Of the header and of all numbers; where they lie in the file does not matter."""
    numbers = weights_sha256({name: torch.from_numpy(values) for name, values in tables.items()})
    return hashlib.sha256(f"{json.dumps(told, sort_keys=True)}\0{numbers}".encode()).hexdigest()


def read_play(path: Path) -> tuple[PlayData, str]:
    """The data set in a file, and the SHA-256 of its content.

    Raises:
        UserError: there is none, or it is none, or its content is not what was written.
    """
    told, tables = _read_tables(path)
    try:
        content_sha256 = told.pop(SHA256)
        header = PlayHeader(**told)
        data = _data_of(header, tables)
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{path} is damaged: {str(error)[:200]}") from None
    if content_sha256 != _content_sha256(told, tables):
        raise UserError(f"{path} is damaged: its content is not what was written")
    return data, content_sha256


def _read_tables(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What the file says of itself, and the numbers, of known names."""
    foreign = f"{path} is no data set of play (--save_dataset writes one)"
    with disk_errors(path, "read"):
        if not path.is_file():
            raise UserError(f"no such file: {path}" if not path.exists() else foreign)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= MAX_HEADER_BYTES:
        raise UserError(foreign)
    try:
        with safe_open(path, framework="numpy") as file:  # it compares all sizes with that of the file
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise UserError(foreign)
            told = json.loads(text)
            version = told["format"]
            if version != FORMAT:
                raise UserError(f"{path} is of format {version!r}, this version of polydistill reads {FORMAT}")
            names = set(file.keys())
            if names not in ({*TABLES}, {*TABLES, *STATISTICS}):
                raise UserError(f"{path} is damaged: it holds {', '.join(sorted(names))}")
            return dict(told), {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is cut short or damaged: {error}") from None
    except (ValueError, TypeError, LookupError, RecursionError):
        raise UserError(f"{path} is damaged: what it says of itself cannot be read") from None


def _data_of(header: PlayHeader, tables: Mapping[str, NDArray[Any]]) -> PlayData:
    """The data set, whose numbers fit one another.

    Raises:
        ValueError: they do not.
    """
    for name, (types, axes) in TABLES.items():
        if tables[name].dtype.name not in types or tables[name].ndim != axes:
            raise ValueError(f"{name} is {tables[name].dtype} of {tables[name].ndim} axes")
    actions, scores = tables["actions"], tables["scores"]
    rows, n_envs = actions.shape
    n_checksums = 1 + -(-rows // header.checked_every)
    shapes: dict[str, Sequence[int]] = {
        "scores": (rows, n_envs, scores.shape[2]),
        "starts": (rows, n_envs),
        "reset_seeds": (n_envs,),
        "checksums": (n_checksums, 32),
    }
    for name, shape in shapes.items():
        if tables[name].shape != tuple(shape):
            raise ValueError(f"{name} has the shape {tables[name].shape}, and {tuple(shape)} is expected")
    if header.checked_every != EVERY or n_envs != header.environment["n_envs"] or not rows or not scores.size:
        raise ValueError(f"{rows} steps of {n_envs} games, checked every {header.checked_every}")
    seeds = tables["reset_seeds"]
    if actions.min() < 0 or actions.max() >= scores.shape[2] or seeds.min() < 0 or seeds.max() >= 2**31:
        raise ValueError("an action or a seed is out of range")
    if not np.isfinite(scores.max(axis=2)).all():
        raise ValueError("the best score of a state is not finite")
    games = tables["teacher_games"]
    if not games.size or not np.isfinite(games).all():
        raise ValueError("the scores of the teacher's games are not finite")
    header.architecture  # noqa: B018  it must be one
    return PlayData(header, **{name: tables[name] for name in TABLES}, statistics=_statistics(header, tables))


def _statistics(header: PlayHeader, tables: Mapping[str, NDArray[Any]]) -> Statistics | None:
    if STATISTICS[0] not in tables:
        return None
    mean, variance = (tables[name] for name in STATISTICS)
    fine = mean.shape == variance.shape and mean.dtype == variance.dtype == np.float64
    if not fine or not np.isfinite([mean, variance]).all() or header.clip is None or header.scale_epsilon is None:
        raise ValueError("the statistics of the inputs are none")
    if variance.min(initial=0.0) < 0 or header.scale_epsilon <= 0:
        raise ValueError("the statistics of the inputs are out of range")
    return Statistics(mean, variance, header.clip, header.scale_epsilon)
