"""Which kernel computes which loss, and in tiles of which size.

The contract: sizes follow from shape, type and loss alone, so that no launch waits for tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from polydistill.kernels.numbers import Decoupled, Divergence, Numbers, Regression, Standardized, Target

N_DIAGNOSTICS = 5
TILE = 256  # elements of a tile of several short rows, for one warp, so that no warp waits for another
PLACES_OF_A_WARP = 512  # elements per warp of longer rows: 16 pairs of scores for each thread
LARGEST_TILE = 8192  # most classes of a row that is held in registers; the next power of 2 would not fit
STREAMED_TILE = 8192  # elements of a tile where a row takes several
N_SUMS = 5  # kept of a long row, see device/long_rows.py
LONG_ROW_KERNEL = "long_row_kernel"

# codes that the device code has too
SOFT_PLAIN, SOFT_PERMUTED, SOFT_REST = 1, 2, 3
LABEL_GIVEN, LABEL_BEST = 1, 2
KL_ALONE, KL_AND_SQUARES = 1, 2
SUMS_KEPT, SUMS_GIVEN = 1, 2


class Kind(NamedTuple):
    """A kernel, the type of its numbers, and its compile-time constants."""

    module: str
    kernel: str
    numbers: type[Numbers]
    constants: Mapping[str, int]


def _target(soft: int = 0, label: int = 0, kl: int = 0) -> Kind:
    return Kind("targets", "target_kernel", Target, MappingProxyType({"SOFT": soft, "LABEL": label, "KL": kl}))


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "label": _target(label=LABEL_GIVEN),
        "best": _target(label=LABEL_BEST),
        "soft": _target(SOFT_PLAIN),
        "soft_label": _target(SOFT_PLAIN, LABEL_GIVEN),
        "kl": _target(SOFT_PLAIN, kl=KL_ALONE),
        "kl_label": _target(SOFT_PLAIN, LABEL_GIVEN, kl=KL_ALONE),
        "kl_squares": _target(SOFT_PLAIN, kl=KL_AND_SQUARES),
        "permuted": _target(SOFT_PERMUTED, LABEL_BEST),
        "rest": _target(SOFT_REST, LABEL_BEST),
        "reverse_kl": Kind("divergences", "divergence_kernel", Divergence, {"JSD": 0}),
        "jsd": Kind("divergences", "divergence_kernel", Divergence, {"JSD": 1}),
        "mse": Kind("regressions", "regression_kernel", Regression, {"HUBER": 0}),
        "huber": Kind("regressions", "regression_kernel", Regression, {"HUBER": 1}),
        "decoupled": Kind("decoupled", "decoupled_kernel", Decoupled, {}),
        "standardized": Kind("standardized", "standardized_kernel", Standardized, {"LABEL": 0}),
        "standardized_label": Kind("standardized", "standardized_kernel", Standardized, {"LABEL": 1}),
    }
)


class LongTile(NamedTuple):
    """Lanes, pieces and width of a tile of a long row, and the warps that work on it: a thread for each lane."""

    lanes: int
    pieces: int
    width: int
    warps: int


# bytes of a score -> the fastest tile, measured on an H100 with scores of shape (4096, 32000)
LONG_TILES: Mapping[int, LongTile] = MappingProxyType({2: LongTile(512, 2, 8, 16), 4: LongTile(512, 8, 4, 16)})
# the same for loss and gradient in one launch, which reads a row twice: one row at a time on each multiprocessor, so
# that the second reading finds it in the cache
ONE_PASS_TILES: Mapping[int, LongTile] = MappingProxyType({**LONG_TILES, 2: LongTile(1024, 2, 8, 32)})
LONG_KINDS = frozenset({"label", "soft", "soft_label", "kl", "kl_label"})


class Tiles(NamedTuple):
    """Rows and columns of a tile, whether it holds whole rows, and the warps that work on it."""

    rows: int
    cols: int
    whole: bool
    warps: int


def plan_tiles(n_rows: int, n_cols: int) -> Tiles:
    """Tiles for a shape: several short rows share one, enough of them to keep a GPU busy; a long row takes several."""
    cols = 1 << max(n_cols - 1, 0).bit_length()
    if cols > LARGEST_TILE:
        return Tiles(1, STREAMED_TILE, False, 8)
    many = (
        1 << max(-(-n_rows // 2048) - 1, 0).bit_length()
    )  # 2,048 programs of one warp are 16 per multiprocessor of an H100
    rows = max(1, min(TILE // cols, many))
    return Tiles(rows, cols, True, max(1, cols // PLACES_OF_A_WARP))


def plan_long_tile(score_bytes: int, *, one_pass: bool, labels: bool, aligned: bool) -> LongTile:
    """The tile of a long row.

    Args:
        score_bytes: of the student.
        one_pass: loss and gradient come from one launch.
        labels: the loss has a label term.
        aligned: all rows begin where a thread can load 16 bytes at once. Otherwise each thread loads single elements
            next to its neighbour's, so that a warp still reads contiguous memory.
    """
    tile = (ONE_PASS_TILES if one_pass and not labels else LONG_TILES)[score_bytes]
    return tile if aligned else tile._replace(pieces=tile.pieces * tile.width, width=1)
