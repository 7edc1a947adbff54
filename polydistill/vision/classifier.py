"""Classifiers on the disk: ``NAME.safetensors`` holds the weights, ``NAME.json`` beside it says what they are.

The card is enough to build the network, feed it and check it: architecture, classes, normalisation, and the hash of the
weights. Contract: opening a file runs no code from it, and a file that does not match its card is refused.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polydistill._environment import require_extra
from polydistill.disk import atomic_write
from polydistill.errors import UserError
from polydistill.provenance import weights_sha256
from polydistill.vision.downloads import LARGEST_CARD, LARGEST_WEIGHTS, local_file
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import Normalization
from polydistill.vision.networks import StagedNetwork, build_network
from polydistill.vision.networks.staged import Renormalizer


class Classifier(nn.Module):
    """A network with the normalisation that it was trained with: takes pixels, gives logits.

    Args:
        network: from normalised floats to logits.
        normalization: of the pixels that the network takes.
        card: its description; see :func:`save_classifier`.
    """

    def __init__(self, network: StagedNetwork, normalization: Normalization, card: Mapping[str, Any]) -> None:
        super().__init__()
        self.network, self.normalization, self.card = network, normalization, dict(card)
        self._trained_on = normalization
        self._normalizer = Normalizer.of(normalization)  # no buffer: .half() would round it

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, 32, 32, 3)`` uint8 pixels, red green blue, to ``(batch, classes)`` float32 logits."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"a classifier takes (batch, height, width, 3) uint8 pixels, got {tuple(images.shape)} {images.dtype}"
            )
        if self._normalizer.scale.device != images.device:
            self._normalizer = Normalizer.of(self.normalization, images.device)
        return self.network(self._normalizer(images)).float()  # type: ignore[no-any-return]

    def take(self, given: Normalization) -> None:
        """From now on the network takes pixels normalised by ``given``; weights and scores stay the same."""
        its = self._trained_on
        if given != self.normalization:
            scale = [before / after for before, after in zip(given.std, its.std, strict=True)]
            shift = [(before - mean) / std for before, mean, std in zip(given.mean, *its, strict=True)]
            self.network.renormalizer = Renormalizer(scale, shift).to(next(self.network.parameters()).device)
            self.normalization, self._normalizer = given, Normalizer.of(given)


def save_classifier(
    path: Path, network: nn.Module, architecture: str, classes: int, normalization: Normalization, **known: Any
) -> dict[str, Any]:
    """Write ``path`` (``.safetensors``) and the card beside it; return the card.

    Args:
        path: ends in .safetensors; a file that is there is replaced.
        network: any device and memory format; stored contiguous, from the CPU.
        architecture: the name that builds it, see :mod:`polydistill.vision.networks`.
        classes: its outputs.
        normalization: of its input.
        known: further plain values for the card, like ``generation`` or ``dataset``.

    Raises:
        UserError: the disk refused.
    """
    require_extra("vision")
    from safetensors.torch import save

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    card = {
        "architecture": architecture,
        "classes": classes,
        "mean": list(normalization.mean),
        "std": list(normalization.std),
        "sha256": weights_sha256(weights),
        **known,
    }
    atomic_write(path, save(weights))
    atomic_write(path.with_suffix(".json"), (json.dumps(card, indent=2, allow_nan=False) + "\n").encode())
    return card


def load_classifier(path: str | Path, device: torch.device | str = "cpu") -> Classifier:
    """The classifier of a ``.safetensors`` file with its card, frozen, in evaluation mode.

    Args:
        path: the .safetensors file; its card lies beside it, with the ending .json. ``hf://org/name[/file]`` is
            downloaded, and is the last generation where no file is named.
        device: where to put it.

    Raises:
        UserError: a file is missing or damaged, cannot be downloaded, or the weights are not those of the card.

    Example:
        >>> classifier = load_classifier("runs/wrn28_1/generation_1.safetensors")  # doctest: +SKIP
        >>> classifier(pixels).argmax(dim=1)  # doctest: +SKIP
    """
    require_extra("vision")
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = local_file(path)
    card = _read_card(path.with_suffix(".json"))
    try:
        weights = load(_read(path, LARGEST_WEIGHTS))
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file, or damaged: {error}") from error
    if weights_sha256(weights) != card["sha256"]:
        raise UserError(
            f"{path} does not hold the weights that {path.with_suffix('.json').name} describes (sha256 differs)"
        )
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise UserError(f"{path}: its {name} is not finite")
    try:
        with torch.device("meta"):
            network = build_network(card["architecture"], card["classes"])
        network.load_state_dict(weights, assign=True)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path} does not fit its card: {error}") from error
    network.eval().requires_grad_(False)
    normalization = Normalization(tuple(card["mean"]), tuple(card["std"]))
    return Classifier(network, normalization, card).to(device).eval()


def _read_card(path: Path) -> dict[str, Any]:
    text = _read(path, LARGEST_CARD, ", the card of the classifier")
    try:
        card = json.loads(text)
    except (ValueError, RecursionError):
        card = None
    if not isinstance(card, dict):
        raise UserError(f"{path} is no card of a classifier: it must hold a JSON object")
    for key, fits in CARD.items():
        if key not in card or not fits(card[key]):
            raise UserError(f"{path} is no card of a classifier: {key} is {card.get(key, 'missing')!r}")
    return card


def _read(path: Path, largest: int, what: str = "") -> bytes:
    """The bytes of a regular file of at most ``largest`` bytes: reading a pipe could wait forever."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode) or state.st_size > largest:
            raise UserError(f"{path}{what} is no file of at most {largest:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}{what}: {error.strerror or error}") from error


def _is_triple(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(x, float) and abs(x) < 1e3 for x in value)


# what a card must say, and what fits
CARD: dict[str, Callable[[Any], bool]] = {
    "architecture": lambda value: isinstance(value, str),
    "classes": lambda value: type(value) is int and 2 <= value <= 100_000,
    "mean": _is_triple,
    "std": lambda value: _is_triple(value) and min(value) > 0,
    "sha256": lambda value: isinstance(value, str),
}
