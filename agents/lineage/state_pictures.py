"""One state as a picture for a page: what the agent sees, and beside each other what its teacher and it make of it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from polydistill.report.sketches import WIDTH, Bar, Bars, Image, draw_bars
from polydistill_agents.environments.gallery import Pictured
from polydistill_agents.networks.observations import Arrays

LARGE, GAP = 260, 8  # width of the newest frame, and between it and those before
MOST_ROWS = 18  # actions, the joystick of Atari
MOST_NUMBERS = 12
WHO = ("teacher", "agent")


def draw_state(state: Pictured, names: Sequence[str], kinds: tuple[str, str]) -> str:
    """The picture; its bars are probabilities, or Q-values between the worst and the best of the state.

    Args:
        state: of a gallery.
        names: of the actions.
        kinds: of the scores of teacher and agent, "q_values" or "logits".
    """
    chosen = [int(state.teacher.argmax()), int(state.agent.argmax())]
    rows = _rows(state.teacher, chosen)
    titles = [f"{who}: {'probability' if kind == 'logits' else 'Q'}" for who, kind in zip(WHO, kinds, strict=True)]
    teacher, agent = (
        Bars(title, _bars(values, rows, best, kind), colour)
        for colour, (title, values, best, kind) in enumerate(
            zip(titles, (state.teacher, state.agent), chosen, kinds, strict=True)
        )
    )
    return draw_bars([names[row] for row in rows], (teacher, agent), images_of(state))


def _rows(teacher: NDArray[np.float32], chosen: Sequence[int]) -> list[int]:
    """All actions; of very many, those that the teacher values most, and the agent's."""
    if len(teacher) <= MOST_ROWS:
        return list(range(len(teacher)))
    best = np.argsort(-teacher, kind="stable")[: MOST_ROWS - 1].tolist()
    return sorted({*best, *chosen})


def _bars(values: NDArray[np.float32], rows: Sequence[int], best: int, kind: str) -> list[Bar]:
    if kind == "logits":
        return [Bar(float(values[row]), f"{100 * values[row]:.0f}%", row == best) for row in rows]
    low, span = float(values.min()), float(np.ptp(values)) or 1.0
    places = 2 if span >= 0.1 else 4
    return [Bar((float(values[row]) - low) / span, f"{values[row]:.{places}f}", row == best) for row in rows]


def images_of(state: Pictured) -> list[Image]:
    """What the environment draws, else the images that the agent sees: of frames in a stack the newest is large."""
    if state.screen is not None:
        return [_image(state.screen, 0, 0, LARGE)]
    planes = next((seen for seen in _parts(state.observation).values() if _is_image(seen)), None)
    if planes is None:
        return []
    if len(planes) == 3:
        return [_image(np.moveaxis(planes, 0, 2), 0, 0, LARGE)]
    small = WIDTH - LARGE - GAP - 12
    newest = _image(planes[-1], 0, 0, LARGE)
    earlier = planes[-4:-1]
    step = small * planes.shape[1] / planes.shape[2] + GAP
    return [newest, *(_image(plane, LARGE + GAP, step * row, small) for row, plane in enumerate(earlier))]


def numbers_of(state: Pictured) -> str:
    """The numbers that the agent sees, as a line; empty where it sees images alone."""
    told = []
    for name, seen in _parts(state.observation).items():
        if _is_image(np.asarray(seen)):
            continue
        flat = np.asarray(seen).ravel()
        some = ", ".join(f"{number:.3g}" for number in flat[:MOST_NUMBERS].tolist())
        more = f" and {len(flat) - MOST_NUMBERS} more" if len(flat) > MOST_NUMBERS else ""
        told.append(f"{name} {some}{more}".strip())
    return "; ".join(told)


def _parts(observation: Arrays) -> dict[str, NDArray[np.generic]]:
    return observation if isinstance(observation, dict) else {"": observation}


def _is_image(seen: NDArray[np.generic]) -> bool:
    return seen.dtype == np.uint8 and seen.ndim == 3


def _image(pixels: NDArray[np.generic], x: float, y: float, width: float) -> Image:
    stream = io.BytesIO()
    PillowImage.fromarray(np.ascontiguousarray(pixels)).save(stream, format="PNG", optimize=True)
    height = width * pixels.shape[0] / pixels.shape[1]
    return Image(stream.getvalue(), x, y, width, height)
