"""A course that was begun by an earlier process goes on, or starts over where its recording is damaged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from polydistill.lineage.keeper import Keeper
from polydistill.runs import Run
from polydistill_agents.environments.recording import DoesNotRepeat
from polydistill_agents.environments.segments import DamagedSegment


class Resumable(Protocol):
    """A course that goes on from where another one was."""

    def load(self, state: Mapping[str, Any], on_step: Callable[[], None]) -> None:
        """Go on from a state, in games that are played again; ``on_step`` is called after each step."""

    def load_into_new_games(self, state: Mapping[str, Any]) -> None:
        """Go on from a state with what was learned, in new games."""


AnyCourse = TypeVar("AnyCourse", bound=Resumable)


def open_course(
    make: Callable[[], AnyCourse], begun: Mapping[str, Any] | None, keeper: Keeper[Any], run: Run
) -> AnyCourse:
    """The course that was begun; a new one where there is none, or its recording is damaged.

    Args:
        make: a new one.
        begun: the state of the one that was begun; None: there is none.
        keeper: of the run.
        run: where it is kept.
    """
    course, generation = make(), keeper.generation
    if begun is None:
        return course
    try:
        course.load(begun, lambda: keeper.heed("the games were played again"))
    except DamagedSegment as error:
        print(f"{error}: generation {generation} starts over", file=sys.stderr)
        run.rewind(begun["began"])
        return make()
    except DoesNotRepeat as error:
        print(f"{error}: generation {generation} goes on in new games", file=sys.stderr)
        course = make()
        course.load_into_new_games(begun)
    return course
