"""The scores in a network's output: a tensor, or one of the containers in which public networks return it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def logits_of(output: Any) -> Tensor:
    """The scores in a network's output.

    Args:
        output: a tensor; an object with ``.logits`` (Hugging Face); a mapping with "logits"; or a tuple or list whose
            first entry is any of these (scores and auxiliary outputs, Inception's pair).

    Returns:
        the tensor of scores, as it is.

    Raises:
        TypeError: there is none.

    Example:
        >>> logits_of({"loss": None, "logits": torch.zeros(2, 3)}).shape
        torch.Size([2, 3])
    """
    found = output
    if not isinstance(found, Tensor) and isinstance(getattr(found, "logits", None), Tensor):
        found = found.logits
    elif isinstance(found, Mapping) and isinstance(found.get("logits"), Tensor):
        found = found["logits"]
    elif isinstance(found, tuple | list) and found:
        return logits_of(found[0])
    if not isinstance(found, Tensor):
        names = f" with {', '.join(map(str, found))}" if isinstance(found, Mapping) else ""
        raise TypeError(
            f"a network must give a tensor of scores, or an output with .logits or ['logits'], or a tuple that begins "
            f"with the scores; got a {type(output).__name__}{names}"
        )
    return found
