"""Statistics of scores: intervals over samples and over seeds, and comparisons of the arms of a study.

Over samples (such as whole games) a percentile bootstrap, over seeds, which are few, Student's t; docs/statistics.md
says how often each interval covers the truth. What a run reports needs numpy alone, comparisons of arms scipy (the
extra ``study``).
"""

from polydistill.statistics.bootstrap import (
    FEWEST,
    ROUGH,
    bootstrap_interval,
    bootstrap_normalized_interval,
    pooled_interval,
)
from polydistill.statistics.components import VarianceComponents, variance_components
from polydistill.statistics.pairs import (
    BCA_FROM,
    METHODS,
    Method,
    PairedComparison,
    compare_pairs,
    paired_interval,
    probability_of_improvement,
)
from polydistill.statistics.power import power_of_pairs, seeds_needed, smallest_effect
from polydistill.statistics.significance import equivalence, holm, least_p, permutation_p, t_p
from polydistill.statistics.t_distribution import t_interval
from polydistill.statistics.two_way import two_way_interval
from polydistill.statistics.values import Interval, iqm

__all__ = [
    "BCA_FROM",
    "FEWEST",
    "METHODS",
    "ROUGH",
    "Interval",
    "Method",
    "PairedComparison",
    "VarianceComponents",
    "bootstrap_interval",
    "bootstrap_normalized_interval",
    "compare_pairs",
    "equivalence",
    "holm",
    "iqm",
    "least_p",
    "paired_interval",
    "permutation_p",
    "pooled_interval",
    "power_of_pairs",
    "probability_of_improvement",
    "seeds_needed",
    "smallest_effect",
    "t_interval",
    "t_p",
    "two_way_interval",
    "variance_components",
]
