"""A loss of one's own by name, ``package.module:function``, for configs: imported, tried, and known by its source.

Contract: only the config of a run that is to be made imports a module, from the folder of the command or an installed
package; a card, a summary or weights that are read never do. What :func:`try_own` accepts gives a finite loss per
sample, with a gradient, and the same one each time, so that a run that was stopped can go on exactly.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polydistill.errors import suggest
from polydistill.losses.objectives import OwnObjective

NAME = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<function>[^\W\d]\w*)")
SAMPLES = 6


def is_own(name: str) -> bool:
    """Whether the name is one of a loss of one's own: it has a colon."""
    return ":" in name


def load_own(name: str, options: Mapping[str, Any] | None = None) -> tuple[OwnObjective, str]:
    """Import a loss.

    Args:
        name: ``package.module:function``; the function takes ``(student, teacher, labels)``, see
            :func:`polydistill.losses.as_objective`.
        options: keywords that it will be called with.

    Returns:
        the objective, whose name is ``name``, and the sha256 of the file that its module is.

    Raises:
        ValueError: in one line: it cannot be imported, is no function of these arguments, or has no source file.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"objective {name!r} is no package.module:function")
    try:
        function = _import(name, match["module"], match["function"])
        inspect.signature(function).bind(None, None, None, **(options or {}))
    except TypeError as error:
        given = "".join(f", {option}=..." for option in options or {})
        raise ValueError(f"objective {name} must take (student, teacher, labels{given}): {error}") from None
    return OwnObjective(name, function, ("teacher", "labels")), _hash_source(name, sys.modules[match["module"]])


def try_own(objective: OwnObjective, classes: int, options: Mapping[str, Any]) -> None:
    """Call it on a few made-up samples, on the CPU.

    Args:
        objective: of :func:`load_own`.
        classes: how many the scores are of.
        options: its keywords.

    Raises:
        ValueError: in one line: it fails, or gives something other than a finite loss per sample, with a gradient and
            each time the same.
    """
    name, generator = objective.name, torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(SAMPLES, classes, generator=generator) for _ in range(2))
    labels, taught = torch.arange(SAMPLES) % classes, teacher.clone()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.enable_grad():
        found = [_ask(objective, student, teacher, labels, options) for _ in range(2)]
    if not torch.equal(teacher, taught):
        raise ValueError(f"objective {name} changes the teacher's scores in place: it must leave them as they are")
    (losses, gradient), again = found
    if not losses.isfinite().all() or not gradient.isfinite().all():
        raise ValueError(f"objective {name} gives losses or gradients that are not finite on made-up scores")
    if not gradient.any():
        raise ValueError(f"objective {name} has the gradient 0: nothing would be learned")
    if not torch.equal(losses, again[0]) or not torch.equal(gradient, again[1]):
        raise ValueError(f"objective {name} gives other losses for the same scores: it must not draw random numbers")


def _import(name: str, module: str, attribute: str) -> Callable[..., Tensor]:
    """The function; the folder of the command counts while its module is imported."""
    sys.path.insert(0, os.getcwd())
    try:
        holder = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        raise ValueError(f"objective {name} cannot be imported: {type(error).__name__}: {_line(error)}") from error
    finally:
        sys.path.remove(os.getcwd())
    function = getattr(holder, attribute, None)
    if function is None:
        raise ValueError(f"objective {name}: {module} has no {attribute}{suggest(attribute, vars(holder))}")
    if not callable(function) or isinstance(function, type):
        raise ValueError(f"objective {name} is no function but a {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def _hash_source(name: str, module: Any) -> str:
    try:
        return hashlib.sha256(Path(inspect.getsourcefile(module) or "").read_bytes()).hexdigest()
    except (TypeError, OSError):
        raise ValueError(f"objective {name}: its module has no source file that can be read") from None


def _ask(
    objective: OwnObjective, student: Tensor, teacher: Tensor, labels: Tensor, options: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """The losses and their gradient in the student's scores."""
    scores = student.clone().requires_grad_()
    try:
        losses = objective(scores, teacher, labels, **options)
    except Exception as error:  # whatever the user's function raises
        told = _line(error)
        told = told if told.startswith(f"objective {objective.name}") else f"{type(error).__name__}: {told}"
        said = told.removeprefix(f"objective {objective.name} ")
        raise ValueError(f"objective {objective.name}, tried on {SAMPLES} samples: {said}") from error
    if not losses.requires_grad:
        raise ValueError(f"objective {objective.name} has no gradient: it must be made of the student's scores")
    (gradient,) = torch.autograd.grad(losses.sum(), scores, allow_unused=True)
    return losses.detach(), torch.zeros_like(scores) if gradient is None else gradient


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
