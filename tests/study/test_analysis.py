"""polydistill.study.analysis: gains, verdicts and the answer in words, on records made by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from polydistill.study.analysis import Analysis, analyse
from polydistill.study.plan import Arm, Plan
from polydistill.study.records import TEACHER, RunRecord

pytest.importorskip("scipy", reason="the extra study is not installed")

# gains of ban: 1, 2, 3; mean 2, deviation 1, and Student's t for 2 degrees of freedom is 4.303: 2 -+ 4.303 / sqrt(3)
LABELS = (30.0, 31.0, 32.0)
BAN = (29.0, 29.0, 29.0)


def make_plan(
    names: Sequence[str],
    contrasts: Sequence[tuple[str, str]],
    seeds: int,
    *,
    metric: str = "test_error",
    **others: object,
) -> Plan:
    arms = tuple(Arm(name, {"student.objective": name}, TEACHER, {}) for name in names)
    plan = Plan(
        world="cifar",
        base={},
        arms=arms,
        teacher={},
        contrasts=tuple(contrasts),
        seeds=tuple(range(seeds)),
        metric=metric,
        direction="lower" if metric == "test_error" else "higher",
        margin=None,
        alpha=0.05,
        commit=None,
    )
    return replace(plan, **others)  # type: ignore[arg-type]


def records_of(values: Mapping[str, Sequence[float | None]], metric: str = "test_error") -> list[RunRecord]:
    """A finished run for each number, none for None."""
    return [
        RunRecord(arm, seed, f"runs/{arm}/seed{seed}", "done", {metric: value}, seconds=10.0)
        for arm, numbers in values.items()
        for seed, value in enumerate(numbers)
        if value is not None
    ]


def analyse_two(ban: Sequence[float | None], labels: Sequence[float | None], **others: object) -> Analysis:
    plan = make_plan(["labels", "ban"], [("ban", "labels")], len(labels), **others)  # type: ignore[arg-type]
    return analyse(plan, records_of({"labels": labels, "ban": ban}))


def test_a_gain_is_positive_where_the_first_arm_has_the_lower_error() -> None:
    contrast = analyse_two(BAN, LABELS).planned[0]
    assert contrast.gains == {0: 1.0, 1: 2.0, 2: 3.0}
    assert contrast.comparison is not None
    assert contrast.comparison.mean == 2.0
    assert contrast.comparison.interval == pytest.approx(
        (2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), abs=1e-4
    )


def test_a_gain_is_positive_where_the_first_arm_has_the_higher_score() -> None:
    plan = make_plan(["labels", "ban"], [("ban", "labels")], 2, metric="score")
    found = analyse(plan, records_of({"labels": (10.0, 20.0), "ban": (11.0, 23.0)}, "score"))
    assert found.planned[0].gains == {0: 1.0, 1: 3.0}


def test_three_pairs_cannot_decide_by_permutation_and_the_words_say_how_many_would() -> None:
    found = analyse_two(BAN, LABELS)
    contrast = found.planned[0]
    assert contrast.p == 0.25  # the 2 of 8 flips in which all signs agree
    assert contrast.verdict == "undecided"
    # d = 2 has 80% power from 5 pairs on, but the permutation test decides nothing below 6
    assert contrast.seeds_to_decide == 6
    assert found.answer == (
        "ban against labels: undecided, +2.0 points (95% interval -0.5 to 4.5, 3 seeds); if that is the true gain, "
        "about 6 seeds would decide.",
    )


def test_ten_equal_signs_decide() -> None:
    labels = [30.0 + seed for seed in range(10)]
    found = analyse_two([value - 0.6 - 0.1 * (seed % 2) for seed, value in enumerate(labels)], labels)
    assert found.planned[0].p == pytest.approx(2 / 1024)
    assert found.planned[0].seeds_to_decide is None
    # mean 0.65, deviation 0.0527, t(9) = 2.262: 0.65 -+ 0.0377
    assert found.answer == ("ban beats labels by 0.650 points (95% interval 0.612 to 0.688, 10 seeds).",)


def test_a_worse_arm_is_worse_by_a_positive_number() -> None:
    labels = [30.0 + seed for seed in range(10)]
    found = analyse_two([value + 0.6 + 0.1 * (seed % 2) for seed, value in enumerate(labels)], labels)
    assert found.planned[0].verdict == "worse"
    assert found.answer == ("ban is worse than labels by 0.650 points (95% interval 0.612 to 0.688, 10 seeds).",)


def test_holm_is_over_the_contrasts_named_beforehand_even_those_without_runs() -> None:
    """A p of 1/32 alone is below 0.05; as one of two contrasts it is not."""
    labels = [30.0 + 0.1 * seed**2 for seed in range(6)]
    values = {"labels": labels, "ban": [value - 1.0 - 0.01 * seed for seed, value in enumerate(labels)]}
    alone = analyse(make_plan(["labels", "ban", "dkpp"], [("ban", "labels")], 6), records_of(values))
    both = analyse(make_plan(["labels", "ban", "dkpp"], [("ban", "labels"), ("dkpp", "labels")], 6), records_of(values))
    assert alone.planned[0].p == pytest.approx(1 / 32)
    assert alone.planned[0].verdict == "better"
    assert both.planned[0].p == pytest.approx(2 / 32)
    assert both.planned[0].verdict == "undecided"
    assert both.planned[1].verdict == "unknown"


def test_an_interval_without_zero_says_why_it_is_not_enough() -> None:
    """Five gains of one sign have p = 1/16 at the least, however narrow Student's interval is."""
    labels = [30.0 + seed for seed in range(5)]
    found = analyse_two([value - 1.0 - 0.1 * (seed % 2) for seed, value in enumerate(labels)], labels)
    # mean 1.04, deviation 0.0548, t(4) = 2.776: 1.04 -+ 0.068
    words = (
        "ban against labels: undecided, +1.040 points (95% interval 0.972 to 1.108, 5 seeds, yet p = 0.062 after Holm)"
    )
    assert found.answer[0].startswith(words)


def test_a_contrast_that_was_not_named_is_exploratory_and_not_corrected() -> None:
    labels = [30.0 + 0.1 * seed**2 for seed in range(6)]
    better = [value - 1.0 - 0.01 * seed for seed, value in enumerate(labels)]
    values = {"labels": labels, "ban": better, "dkpp": labels}
    found = analyse(make_plan(["labels", "ban", "dkpp"], [("dkpp", "ban"), ("labels", "dkpp")], 6), records_of(values))
    (contrast,) = found.exploratory
    assert (contrast.first, contrast.second, contrast.planned) == ("labels", "ban", False)
    assert contrast.p == pytest.approx(1 / 32)
    assert len(found.answer) == 2


def test_a_study_without_named_contrasts_only_says_how_it_looks() -> None:
    labels = [30.0 + seed for seed in range(10)]
    values = {"labels": labels, "ban": [value - 0.6 - 0.1 * (seed % 2) for seed, value in enumerate(labels)]}
    found = analyse(make_plan(["ban", "labels"], [], 10, found=True), records_of(values))
    assert found.planned == ()
    assert found.answer == ("ban looks better than labels by 0.650 points (95% interval 0.612 to 0.688, 10 seeds).",)


@pytest.mark.parametrize(
    ("ban", "words"),
    [
        ((29.5, None), "ban against labels: nothing can be said, one seed gives no interval. It was +0.50 points."),
        ((None, None), "ban against labels: nothing can be said, no seed has finished both."),
    ],
)
def test_no_interval_is_made_of_fewer_than_two_pairs(ban: Sequence[float | None], words: str) -> None:
    found = analyse_two(ban, (30.0, 30.0))
    assert found.planned[0].comparison is None
    assert found.planned[0].p is None
    assert found.answer == (words,)
    assert next(arm for arm in found.arms if arm.arm == "ban").interval is None


def test_only_seeds_of_which_both_runs_are_done_make_a_pair() -> None:
    plan = make_plan(["labels", "ban"], [("ban", "labels")], 5)
    records = records_of({"labels": (30.0, None, 30.0, 30.0, 30.0), "ban": (29.0, 29.0, 29.0, 29.0, math.nan)})
    records[-2] = replace(records[-2], status="running")
    assert analyse(plan, records[::-1]).planned[0].gains == {0: 1.0, 2: 1.0}


def test_a_small_difference_within_the_margin_is_equivalence() -> None:
    labels = [30.0 + seed for seed in range(8)]
    ban = [value + (0.1 if seed % 2 else -0.1) for seed, value in enumerate(labels)]
    assert analyse_two(ban, labels).planned[0].verdict == "undecided"
    found = analyse_two(ban, labels, margin=0.5)
    assert found.planned[0].verdict == "equivalent"
    # deviation 0.1069, t(7) = 2.365: 0 -+ 0.0894
    words = "ban equals labels within 0.5 points: +0.000 points (95% interval -0.089 to 0.089, 8 seeds)."
    assert found.answer == (words,)


def test_arms_that_differ_in_the_students_seed_alone_are_called_so() -> None:
    plan = make_plan(["ban", "again"], [("ban", "again")], 3)
    arms = (Arm("ban", {"student.objective": "ban"}, TEACHER, {}),)
    arms += (Arm("again", {"student.objective": "ban", "student.repeat": 1}, TEACHER, {}),)
    found = analyse(replace(plan, arms=arms), records_of({"ban": (1.0, 5.0, 9.0), "again": (3.0, 7.0, 11.0)}))
    assert found.planned[0].null
    assert "the size of nothing" in found.answer[0]
    # of groups (1, 3), (5, 7), (9, 11): within 2, between the means 2, 6, 10 it is 16 less half of 2
    (components,) = found.components
    assert components.students == pytest.approx(math.sqrt(2))
    assert components.teachers == pytest.approx(math.sqrt(15))


def test_a_second_students_teacher_must_be_the_same_for_it_to_be_the_size_of_nothing() -> None:
    plan = make_plan(["ban", "again"], [("ban", "again")], 3)
    arms = (Arm("ban", {}, TEACHER, {}), Arm("again", {"student.repeat": 1}, "ban", {}))
    found = analyse(replace(plan, arms=arms), records_of({"ban": BAN, "again": LABELS}))
    assert not found.planned[0].null
    assert found.components == ()


def test_new_images_have_an_interval_of_their_own_where_all_runs_stored_what_they_named_rightly() -> None:
    """The first arm is right on all of 200 images, the second on half of them: 50 points, on others more or less."""
    plan = make_plan(["labels", "ban"], [("ban", "labels")], 4)
    records = records_of({"labels": (50.0, 50.0, 50.0, 50.0), "ban": (0.0, 0.0, 0.0, 0.0)})

    def read(record: RunRecord) -> NDArray[np.bool_]:
        return np.arange(200) % 2 == 0 if record.arm == "labels" else np.ones(200, dtype=bool)

    interval = analyse(plan, records, read).planned[0].new_images
    assert interval is not None
    # the share of 200 drawn images on which they differ, -+ 1.96 * 100 * sqrt(0.25 / 200); of four seeds it is wider by
    # sqrt(4 / 3) * 3.182 / 1.96, Student's quantile of 3 degrees over the normal one
    assert interval == pytest.approx((50 - 12.99, 50 + 12.99), abs=1.9)
    assert analyse(plan, records).planned[0].new_images is None
    found = analyse(replace(plan, contrasts=()), records, read).exploratory[0].new_images  # labels against ban
    assert found is not None
    assert found == pytest.approx((-50 - 12.99, -50 + 12.99), abs=1.9)
    one_is_missing = analyse(plan, records, lambda record: None if record.seed == 2 else read(record))
    assert one_is_missing.planned[0].new_images is None


def test_the_seeds_own_teachers_are_shown_or_those_that_were_given() -> None:
    plan = make_plan(["labels", "ban"], [], 2)
    own = analyse(plan, [*records_of({"labels": (1.0, 2.0), "ban": (1.0, 2.0), TEACHER: (3.0, 5.0)})])
    assert own.teachers is not None
    assert own.teachers.values == {0: 3.0, 1: 5.0}
    records = [replace(record, teacher_metrics={"test_error": 4.0}) for record in records_of({"labels": (1.0, 2.0)})]
    given = analyse(replace(plan, teacher=None), records)
    assert given.teachers is not None
    assert given.teachers.mean == 4.0
    assert given.teachers.interval is None  # one teacher for all seeds


def test_the_same_records_in_any_order_give_the_same_analysis() -> None:
    generator = np.random.default_rng(0)
    values = {arm: generator.normal(30, 1, 16).tolist() for arm in ("labels", "ban", "dkpp")}
    plan = make_plan(["labels", "ban", "dkpp"], [("ban", "labels")], 16)
    records = records_of(values)
    assert analyse(plan, records) == analyse(plan, records[::-1])


def test_arms_without_any_difference_are_no_reason_to_fail() -> None:
    found = analyse_two((30.0, 30.0, 30.0), (30.0, 30.0, 30.0), margin=0.5)
    assert found.planned[0].verdict == "undecided"
    assert found.planned[0].seeds_to_decide is None
    assert "no practical number of seeds" in found.answer[0]


def test_a_metric_that_this_version_does_not_know_is_called_as_it_is() -> None:
    plan = make_plan(["labels", "ban"], [("ban", "labels")], 2, metric="frames_per_life")
    found = analyse(plan, records_of({"labels": (10.0, 20.0), "ban": (11.0, 23.0)}, "frames_per_life"))
    assert found.answer[0].startswith("ban against labels: undecided, +2 (95% interval -11 to 15, 2 seeds)")
