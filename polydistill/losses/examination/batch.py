"""A batch as rows: each token, and each student's sample, becomes a row; rows without a label are left out.

Symbols: R rows of one label each; C classes; M members of an ensemble.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polydistill.losses.ignored import find_counted


class Rows(NamedTuple):
    """The rows that are examined.

    Attributes:
        scores: ``(R, C)`` of the student.
        targets: ``(R, C)`` of the teacher, or ``(M, R, C)``.
        labels: ``(R,)``, or None.
        options: of the objective; an option with a value per row has only these rows.
        kept: ``(all rows,)`` bool, False for rows that are left out; None: all are kept.
    """

    scores: Tensor
    targets: Tensor
    labels: Tensor | None
    options: Mapping[str, Any]
    kept: Tensor | None

    @property
    def ignored(self) -> int:
        """How many rows are left out."""
        return 0 if self.kept is None else int((~self.kept).sum())


def take_rows(
    scores: Tensor, targets: Tensor, labels: Tensor | None, options: Mapping[str, Any], ignore_index: int | None
) -> Rows:
    """Scores ``(..., C)`` and labels ``(...)`` as rows, without those whose label is ``ignore_index`` (None: all stay).

    Shapes that do not fit together stay as they are: the objective raises the error.
    """
    leading = scores.shape[:-1]
    if targets.shape[-scores.dim() :] != scores.shape or targets.dim() > scores.dim() + 1:
        return Rows(scores, targets, labels, options, None)
    if labels is not None and (not isinstance(labels, Tensor) or labels.shape != leading or not _whole(labels)):
        return Rows(scores, targets, labels, options, None)
    kept = None
    if labels is not None:
        labels = labels.reshape(-1)
        kept = find_counted(labels, ignore_index)
        kept = None if kept is None or bool(kept.all()) else kept
    if scores.dim() == 2 and kept is None:
        return Rows(scores, targets, labels, options, None)

    def cut(tensor: Tensor, before: int = 0) -> Tensor:
        flat = tensor.flatten(before, before + len(leading) - 1)
        return flat if kept is None else flat.index_select(before, kept.nonzero().flatten())

    cut_options = {
        name: cut(value) if isinstance(value, Tensor) and value.shape[:-1] == leading else value
        for name, value in options.items()
    }
    members = targets.dim() - scores.dim()
    rows = Rows(cut(scores), cut(targets, members), None if labels is None else labels, cut_options, kept)
    if labels is not None and kept is not None:
        rows = rows._replace(labels=labels[kept])
    return rows


def leave_out(rows: Rows, silent: Tensor) -> Rows:
    """The rows without the ``silent`` ones, ``(R,)`` bool."""
    places = (~silent).nonzero().flatten()
    options = {
        name: value[places] if isinstance(value, Tensor) and value.shape[:-1] == silent.shape else value
        for name, value in rows.options.items()
    }
    kept = torch.ones_like(silent) if rows.kept is None else rows.kept.clone()
    kept[kept.nonzero().flatten()[silent]] = False
    labels = None if rows.labels is None else rows.labels[places]
    return Rows(rows.scores[places], rows.targets[..., places, :], labels, options, kept)


def _whole(labels: Tensor) -> bool:
    return labels.dtype is not torch.bool and not labels.dtype.is_floating_point and not labels.dtype.is_complex
