"""Measure by simulation how often the intervals cover the truth, and how often the tests find what is not there.

    python scripts/simulate_statistics.py

The tables are those of docs/statistics.md, in percent. One core. See polydistill/statistics/simulation.py.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("study", "jsonargparse", "yaml", "rich", "scipy")

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from polydistill.config.parsing import parse
from polydistill.errors import require_at_least, run_script
from polydistill.provenance import git_state
from polydistill.runs import format_table
from polydistill.statistics import BCA_FROM, METHODS, simulation
from polydistill.streams import numpy_stream

PAIRS = (5, 10, 20, 50)
SPREADS = (0.0, 0.05, 0.2)  # of the networks' strength: what one seed differs by from another, beside its whims
CONTRASTS = 4  # planned ones that share an arm
Row = list[str | None]


@dataclass(frozen=True)
class SimulationConfig:
    """How much is drawn.

    Args:
        repeats: draws per cell of what is a formula: Student's t, Holm, TOST.
        resampled_repeats: draws per cell of what resamples: bootstraps and permutation tests.
        two_way_repeats: simulated studies per cell of the bootstrap over seeds and images.
        images: of the simulated test sets.
        seed: of all draws; each cell has a stream of its own.
    """

    repeats: int = 5_000
    resampled_repeats: int = 1_500
    two_way_repeats: int = 500
    images: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(1, self, "repeats", "resampled_repeats", "two_way_repeats", "images")

    def stream(self, *cell: object) -> np.random.Generator:
        return numpy_stream(self.seed, " ".join(map(str, cell)))


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def coverage(config: SimulationConfig) -> Iterator[Row]:
    """Of the 95% interval of the mean difference."""
    for method in METHODS:
        repeats = config.repeats if method == "t" else config.resampled_repeats
        for name, draw in simulation.DIFFERENCES.items():
            cells: Row = [method, name]
            for n in PAIRS:
                if method == "bca" and n < BCA_FROM:
                    cells.append(None)
                else:
                    stream = config.stream("coverage", method, name, n)
                    cells.append(percent(simulation.covered(method, draw, n, repeats, stream)))
            yield cells


def coverage_over_images(config: SimulationConfig) -> Iterator[Row]:
    """Of the 95% interval over new seeds and new images, and beside it of Student's over the seeds alone."""
    for spread in SPREADS:
        found = [
            simulation.covered_two_ways(
                n, config.images, spread, config.two_way_repeats, config.stream("two ways", spread, n)
            )
            for n in PAIRS
        ]
        yield ["two-way", f"{spread:g}", *(percent(both) for both, _ in found)]
        yield ["t over seeds", f"{spread:g}", *(percent(seeds) for _, seeds in found)]


def false_positives(config: SimulationConfig) -> Iterator[Row]:
    """At alpha 0.05: of one test, of any among several contrasts, and of equivalence."""
    for name, draw in simulation.DIFFERENCES.items():
        streams = [(n, config.stream("t", name, n)) for n in PAIRS]
        yield ["t", name, *(percent(simulation.t_positives(draw, n, config.repeats, of)) for n, of in streams)]
    for name, draw in simulation.DIFFERENCES.items():
        streams = [(n, config.stream("permutation", name, n)) for n in PAIRS]
        found = [simulation.permutation_positives(draw, n, config.resampled_repeats, of) for n, of in streams]
        yield ["permutation", name, *map(percent, found)]
    for name, draw in simulation.DIFFERENCES.items():
        streams = [(n, config.stream("equivalence", name, n)) for n in PAIRS]
        yield ["TOST", name, *(percent(simulation.false_equivalence(draw, n, config.repeats, of)) for n, of in streams)]
    any_of = [simulation.any_false_positive(CONTRASTS, n, config.repeats, config.stream("contrasts", n)) for n in PAIRS]
    yield [f"t, any of {CONTRASTS}", "normal", *(percent(alone) for _, alone in any_of)]
    yield [f"Holm, any of {CONTRASTS}", "normal", *(percent(adjusted) for adjusted, _ in any_of)]


@run_script
def main(argv: list[str] | None = None) -> None:
    program = "python scripts/simulate_statistics.py"
    config = parse(SimulationConfig, argv, program=program, description=__doc__ or "", default_name=None).config
    counts = [f"{n} pairs" for n in PAIRS]
    print(f"commit {(git_state() or {}).get('commit', 'unknown')}", flush=True)
    for headers, rows in (
        (["interval", "differences", *counts], coverage(config)),
        (["interval", "spread of seeds", *counts], coverage_over_images(config)),
        (["false positives", "differences", *counts], false_positives(config)),
    ):
        print("\n" + format_table(headers, list(rows)), flush=True)


if __name__ == "__main__":
    main()
