"""The planted bugs of ``tests/mutants/mutants.py`` still fit the code, and the script's verdict can be trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import mutants
from tests.mutants.mutants import MUTANTS, Mutant, Witness

SORTS = {
    *("sign", "T", "T^2", "mask", "stride", "padding", "reduction", "upstream gradient", "detached side"),
    *("permutation", "weight", "label", "kept sums", "hidden NaN"),
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.sort} in {mutant.path}")
def test_text_of_a_planted_bug_is_there_once(root: Path, mutant: Mutant) -> None:
    assert (root / mutant.path).read_text(encoding="utf-8").count(mutant.before) == 1
    assert mutant.after != mutant.before
    assert (root / mutant.tests.file).is_file()


def test_every_sort_of_bug_is_planted(root: Path) -> None:
    assert {mutant.sort for mutant in MUTANTS} == SORTS
    assert len(MUTANTS) >= 12
    planted = {root / mutant.path for mutant in MUTANTS}
    kernels = set((root / "polydistill" / "kernels" / "device").glob("[!_]*.py"))
    assert kernels - planted == set()
    for layer in ("losses", "kernels"):
        assert sum(f"polydistill/{layer}/" in mutant.path for mutant in MUTANTS) >= 6


@pytest.mark.parametrize(
    ("codes", "verdict", "status"),
    [((0, 1), "seen", 0), ((0, 0), "UNSEEN", 1), ((0, 2), "pytest ended with 2", 1), ((0, 5), "ended with 5", 1)],
)
def test_only_a_failed_test_counts_as_seen(monkeypatch, capsys, codes, verdict, status) -> None:
    """Not tests that cannot be collected, nor that there are none."""
    left = iter(codes)
    one = Mutant("sign", "polydistill/losses/probabilities.py", MUTANTS[0].before, "0", Witness("tests/a.py", "a"))
    seen: list[str] = []

    def run_tests(folder: Path, tests: Witness) -> int:
        seen.append((folder / one.path).read_text(encoding="utf-8"))
        return next(left)

    monkeypatch.setattr(mutants, "MUTANTS", (one,))
    monkeypatch.setattr(mutants, "run_tests", run_tests)
    assert mutants.main([]) == status
    assert verdict in capsys.readouterr().out
    assert [one.before in text for text in seen] == [True, False]


def test_tests_that_fail_without_a_bug_prove_nothing(monkeypatch, capsys) -> None:
    monkeypatch.setattr(mutants, "run_tests", lambda folder, tests: 1)
    assert mutants.main(["stride"]) == 1
    assert "without a bug, pytest tests/kernels/test_values.py -k 'strides and policy_kl' ends with 1" in (
        capsys.readouterr().out
    )
