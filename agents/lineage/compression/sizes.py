"""The sizes of a sweep: what a user names, as a student of one teacher for one task.

A size is an arm of a study: a name that may be that of a folder, and the keys of a config that make such a student.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gymnasium import spaces

from polydistill.errors import UserError
from polydistill_agents.distillation.settings import fitting_policy
from polydistill_agents.distillation.student_policy import choose_architecture, count_weights
from polydistill_agents.networks.architecture import Architecture
from polydistill_agents.networks.fitting import tell_space
from polydistill_agents.networks.nature import SIZES, Size, name_size, read_size
from polydistill_agents.teachers import Teacher

SAME, TWIN = "teacher", "twin"  # what a user writes, and the name of that arm: "teacher" is no name of one
OF_FRAMES = (SAME, "net1", "net2", "net3")
OF_NUMBERS = (SAME, "1/2", "1/4", "1/8")
FRACTION = re.compile(r"1/([1-9][0-9]{0,3})", re.ASCII)
WIDTHS = re.compile(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})*", re.ASCII)


class Swept(NamedTuple):
    """A size of the sweep.

    Attributes:
        name: of its arm.
        keys: of the config that make a student of it.
        parameters: of such a student.
    """

    name: str
    keys: Mapping[str, Any]
    parameters: int


def choose_sizes(
    wanted: Sequence[str], teacher: Teacher, space: spaces.Space[Any], n_actions: int, played: str
) -> list[Swept]:
    """The sizes that a user names, the largest student first; the default ones for an empty ``wanted``.

    Args:
        wanted: see :class:`~polydistill_agents.lineage.compression.config.CompressionConfig`.
        teacher: of the students.
        space: of what they see.
        n_actions: that they choose from.
        played: name of the game or environment, for messages.

    Raises:
        UserError: one is no size, or not one of such a task, or two are the same network.
    """
    sizes = _Sizes(teacher, space, n_actions, played)
    found: dict[Architecture, tuple[str, Swept]] = {}
    for text in wanted or sizes.usual():
        name, keys, architecture = sizes.read(text)
        if architecture in found:
            if wanted:
                raise UserError(
                    f"sizes: {found[architecture][0]} and {text} are the same network: leave one of them out"
                )
            continue
        found[architecture] = text, Swept(name, keys, sizes.count(architecture))
    return sorted((swept for _, swept in found.values()), key=lambda swept: -swept.parameters)


class _Sizes:
    """Reads sizes, of students of one teacher."""

    def __init__(self, teacher: Teacher, space: spaces.Space[Any], n_actions: int, played: str) -> None:
        self.teacher, self.space, self.n_actions, self.played = teacher, space, n_actions, played
        self.policy = fitting_policy(space)
        self.twin = self._build(None, {})

    def usual(self) -> Sequence[str]:
        """The default ones; of frames those that are smaller than the teacher."""
        if self.twin.size is None:
            return OF_NUMBERS
        smaller = [name for name in OF_FRAMES[1:] if self.count(self._build(SIZES[name], {})) < self.count(self.twin)]
        return (SAME, *smaller) if smaller else OF_NUMBERS

    def count(self, architecture: Architecture) -> int:
        """Parameters of such a student."""
        return count_weights(self.space, self.n_actions, architecture)

    def read(self, text: str) -> tuple[str, dict[str, Any], Architecture]:
        """Name, keys and network of a size."""
        if text == SAME:
            return TWIN, {}, self.twin
        fraction = FRACTION.fullmatch(text)
        if self.policy == "CnnPolicy":
            size = self._size_of_frames(text, None if fraction is None else int(fraction[1]))
            return name_size(size), {"student.size": name_size(size)}, self._build(size, {})
        widths = self._widths(text, None if fraction is None else int(fraction[1]))
        network = self._build(None, {"net_arch": list(widths)})
        return "x".join(map(str, widths)), {"student.net_arch": list(widths)}, network

    def _size_of_frames(self, text: str, divisor: int | None) -> Size:
        if divisor is not None:
            assert self.twin.size is not None  # of frames
            first, second, third = (_divide(width, divisor) for width in self.twin.size.channels)
            return Size((first, second, third), _divide(self.twin.size.hidden, divisor))
        try:
            return read_size(text)
        except ValueError as error:
            raise UserError(f"sizes: {error}; a fraction of the teacher's widths, as 1/4; or {SAME}") from None

    def _widths(self, text: str, divisor: int | None) -> tuple[int, ...]:
        if divisor is not None:
            if not self.twin.net_arch:
                raise UserError(f"sizes: {text} is a fraction of hidden layers, and the teacher has none")
            return tuple(_divide(width, divisor) for width in self.twin.net_arch)
        if not WIDTHS.fullmatch(text):
            of_frames = " is of frames, and" if text in SIZES else ":"
            raise UserError(
                f"sizes: {text!r}{of_frames} {self.played} shows {tell_space(self.space)}: give the widths of linear "
                f"layers, as 32x32; a fraction of the teacher's, as 1/4; or {SAME}"
            )
        return tuple(map(int, text.split("x")))

    def _build(self, size: Size | None, policy_kwargs: Mapping[str, Any]) -> Architecture:
        with warnings.catch_warnings():  # the run itself says that a teacher's architecture is unknown
            warnings.simplefilter("ignore")
            return choose_architecture(self.policy, size, self.teacher, policy_kwargs)


def _divide(width: int, divisor: int) -> int:
    return max(round(width / divisor), 1)
