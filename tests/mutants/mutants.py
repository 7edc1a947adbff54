"""Plant one bug after the other in the losses and their kernels, and see the named tests turn red.

    python -m tests.mutants.mutants                 all of them, a quarter of an hour
    python -m tests.mutants.mutants sign stride     those of these sorts

Works on a copy of the files that git tracks, in a temporary folder. First the named tests are run on the copy as it is,
where they must pass. Prints a table; exit code 1 if a bug stays unseen, or if the tests fail without one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from polydistill.runs import format_table

ROOT = Path(__file__).resolve().parent.parent.parent
PASSED, FAILED = 0, 1  # pytest's exit codes; others say that it did not get as far as a test


class Witness(NamedTuple):
    """A file of tests, and which of them by pytest's ``-k``."""

    file: str
    select: str


class Mutant(NamedTuple):
    """A bug: in ``path`` the text ``before``, which is there once, becomes ``after``, and ``tests`` must see it."""

    sort: str
    path: str
    before: str
    after: str
    tests: Witness


LOSSES, DEVICE = "polydistill/losses/", "polydistill/kernels/device/"
VALUES = "tests/kernels/test_values.py"
FORMULAS = Witness("tests/losses/test_formulas.py", "formula_in_float64 or masked_classes")
HINTON_KERNEL = Witness(VALUES, "as_exact and hinton_kd")
DKPP_KERNEL = Witness(VALUES, "as_exact and dkpp")
JSD_KERNEL = Witness(VALUES, "as_exact and jsd")
ENSEMBLE_KERNEL = Witness(VALUES, "averaged_in_the_kernel and reverse_kl")
LONG_ROWS = Witness(VALUES, "long_rows_have_a_kernel or row_of_many_tiles")
DIAGNOSTICS = Witness("tests/kernels/test_transforms.py", "diagnostics_of_a_teacher_that_excludes_classes")

MUTANTS = (
    Mutant("sign", LOSSES + "probabilities.py", "(p * log_q).sum(dim=-1).neg()", "(p * log_q).sum(dim=-1)", FORMULAS),
    Mutant(
        "T", LOSSES + "policy.py", "teacher_q, mask, temperature, ensemble", "teacher_q, mask, 1.0, ensemble", FORMULAS
    ),
    Mutant(
        "T^2",
        LOSSES + "classification.py",
        "(teacher_weight * temperature**2), promote",
        "(teacher_weight * temperature), promote",
        FORMULAS,
    ),
    Mutant("T^2", LOSSES + "decoupled.py", "soft * temperature**2", "soft", FORMULAS),
    Mutant(
        "mask",
        LOSSES + "probabilities.py",
        "return scores if mask is None else drop_classes(scores, mask)",
        "return scores",
        FORMULAS,
    ),
    Mutant(
        "reduction",
        LOSSES + "probabilities.py",
        "return (probabilities(log_p) * (log_p - log_q)).sum(-1)",
        "return (probabilities(log_p) * (log_p - log_q)).mean(-1)",
        FORMULAS,
    ),
    Mutant(
        "reduction",
        LOSSES + "batch_normalized.py",
        "return values.mean(dim=-1, keepdim=True)",
        "return values.sum(dim=-1, keepdim=True)",
        FORMULAS,
    ),
    Mutant(
        "permutation",
        LOSSES + "permuted.py",
        "others + (others >= best.unsqueeze(-1))",
        "others + (others > best.unsqueeze(-1))",
        FORMULAS,
    ),
    Mutant(
        "detached side",
        LOSSES + "checks.py",
        "return student, teacher.detach()",
        "return student, teacher",
        Witness("tests/losses/test_gradients.py", "teacher_gets_no_gradient"),
    ),
    Mutant(
        "upstream gradient",
        LOSSES + "one_pass.py",
        "upstream = torch.ones_like(loss) if weights is None else weights.to(loss.dtype)",
        "upstream = torch.ones_like(loss)",
        Witness("tests/losses/test_one_pass.py", "weighted_sum"),
    ),
    Mutant(
        "sign",
        DEVICE + "targets.py",
        "difference = e - of_teacher * quotient(z_sum, t_sum)[:, None]",
        "difference = of_teacher * quotient(z_sum, t_sum)[:, None] - e",
        HINTON_KERNEL,
    ),
    Mutant(
        "T",
        DEVICE + "targets.py",
        "(a * z_scale * inverse(z_sum))",
        "(a * inverse(z_sum))",
        HINTON_KERNEL,
    ),
    Mutant(
        "upstream gradient",
        DEVICE + "targets.py",
        "factor = load_rows(upstream_ptr, rows, n_rows, upstream_row, HAS_UPSTREAM)",
        "factor = tl.full((ROWS,), 1.0, tl.float32)",
        HINTON_KERNEL,
    ),
    Mutant(
        "padding",
        DEVICE + "sides.py",
        'return tl.load(places, mask=keep, other=float("-inf")).to(tl.float32)',
        "return tl.load(places, mask=keep, other=0.0).to(tl.float32)",
        HINTON_KERNEL,
    ),
    Mutant(
        "mask",
        DEVICE + "rows.py",
        "keep = keep & (leaves == 0)",
        "keep = keep & (leaves >= 0)",
        Witness(VALUES, "mask_takes_classes_out and policy_kl"),
    ),
    Mutant(
        "stride",
        DEVICE + "sides.py",
        "places = side[0] + rows * side[1] + cols * side[2]",
        "places = side[0] + rows * side[1] + cols",
        Witness(VALUES, "strides and policy_kl"),
    ),
    Mutant("stride", DEVICE + "sides.py", "places += side[3]", "places += 0", ENSEMBLE_KERNEL),
    Mutant(
        "reduction",
        DEVICE + "sides.py",
        "maximum[:, None]) * side[4] - log_total[:, None]",
        "maximum[:, None]) * side[4]",
        ENSEMBLE_KERNEL,
    ),
    Mutant("T", DEVICE + "sides.py", "return side, 1.0", "return side, scale", ENSEMBLE_KERNEL),
    Mutant(
        "permutation",
        DEVICE + "targets.py",
        "source + (source >= label[:, None])",
        "source + (source > label[:, None])",
        DKPP_KERNEL,
    ),
    Mutant(
        "reduction",
        DEVICE + "streaming.py",
        "return merged, rescale(total, maximum, merged, scale) + tl.sum(",
        "return merged, total + tl.sum(",
        JSD_KERNEL,
    ),
    Mutant(
        "padding",
        "polydistill/kernels/launch.py",
        "chosen.kernel, -(-n_rows // tiles.rows), integers",
        "chosen.kernel, n_rows // tiles.rows, integers",
        HINTON_KERNEL,
    ),
    Mutant(
        "weight",
        DEVICE + "divergences.py",
        "r = tl.where(keep, (1.0 - beta) * (log_q - log_m), 0.0)",
        "r = tl.where(keep, log_q - log_m, 0.0)",
        JSD_KERNEL,
    ),
    Mutant(
        "reduction",
        DEVICE + "long_rows.py",
        "z_sum = z_sum * power(shift, z_scale) + add_up(power(z, z_scale))",
        "z_sum = z_sum + add_up(power(z, z_scale))",
        LONG_ROWS,
    ),
    Mutant(
        "reduction",
        DEVICE + "long_rows.py",
        "crosses = tl.where(parts == 0, 0.0, crosses * factor + parts * moved)",
        "crosses = crosses * factor",
        LONG_ROWS,
    ),
    Mutant(
        "padding",
        DEVICE + "long_rows.py",
        "seen = whole_tiles // LANES + add_up((whole_tiles + places < n_cols).to(tl.int32))",
        "seen = (whole_tiles + TILE) // LANES",
        LONG_ROWS,
    ),
    Mutant(
        "label",
        DEVICE + "long_rows.py",
        "share += factor * label_weight * (1.0 - smoothing)",
        "share += factor * label_weight",
        LONG_ROWS,
    ),
    Mutant(
        "upstream gradient",
        DEVICE + "long_rows.py",
        "factor *= tl.load(upstream_ptr + row * upstream_row)",
        "factor *= tl.load(upstream_ptr)",
        LONG_ROWS,
    ),
    Mutant(
        "kept sums",
        DEVICE + "long_rows.py",
        "tl.store(sums_ptr + 4, t_sum)",
        "tl.store(sums_ptr + 4, z_sum)",
        Witness(VALUES, "many_rows_and_long_ones"),
    ),
    Mutant(
        "upstream gradient",
        "polydistill/kernels/autograd.py",
        "torch.mul(ctx.gradient, upstream.unsqueeze(1), out=gradient)",
        "gradient.copy_(ctx.gradient)",
        HINTON_KERNEL,
    ),
    Mutant(
        "weight",
        DEVICE + "decoupled.py",
        "alpha * off, others_weight * (q - p) - alpha * off * q)",
        "alpha * off, others_weight * (q - p))",
        Witness(VALUES, "as_exact and dkd"),
    ),
    Mutant(
        "T",
        DEVICE + "decoupled.py",
        "loss = temperature * temperature * (alpha",
        "loss = temperature * (alpha",
        Witness(VALUES, "as_exact and dkd"),
    ),
    Mutant(
        "sign",
        DEVICE + "regressions.py",
        "gradient = at_most(at_least(d, -delta), delta)",
        "gradient = at_most(tl.abs(d), delta)",
        Witness(VALUES, "as_exact and policy_huber"),
    ),
    Mutant(
        "label",
        DEVICE + "diagnostics.py",
        "q_others += tl.sum(tl.where(is_star, 0.0, q), axis=1)",
        "q_others += tl.sum(q, axis=1)",
        DIAGNOSTICS,
    ),
    Mutant(
        "reduction",
        DEVICE + "diagnostics.py",
        "difference = p_others[:, None] * q - p",
        "difference = q - p",
        DIAGNOSTICS,
    ),
    Mutant(
        "sign",
        DEVICE + "standardized.py",
        "gradient = g / width[:, None] - scaled * slope[:, None]",
        "gradient = g / width[:, None] + scaled * slope[:, None]",
        Witness(VALUES, "as_exact and logit_standardized_kd"),
    ),
    Mutant(
        "hidden NaN",
        LOSSES + "policy.py",
        "loss = loss * (best - best).exp_()",
        "loss = loss * 1.0",
        Witness("tests/losses/test_formulas.py", "without_a_finite_best"),
    ),
    Mutant(
        "hidden NaN",
        DEVICE + "confidence.py",
        'tl.where(total == 0, float("nan"), inverse(total))',
        "inverse(total)",
        Witness(VALUES, "row_of_minus_infinity or confidence_is"),
    ),
)


def copy_tracked(folder: Path) -> None:
    """The files that git tracks, as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)


def run_tests(folder: Path, tests: Witness) -> int:
    """pytest's exit code for these tests of the copy."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("TRITON_INTERPRET", None)
    if tests.file.startswith("tests/kernels/"):
        environment["TRITON_INTERPRET"] = "1"
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", tests.file, "-k", tests.select]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True).returncode


def judge(folder: Path, mutant: Mutant) -> str:
    """Plant the bug, run its tests, and take the bug out again."""
    path = folder / mutant.path
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.before) != 1:
        return f"the text is there {text.count(mutant.before)} times"
    path.write_text(text.replace(mutant.before, mutant.after), encoding="utf-8")
    try:
        code = run_tests(folder, mutant.tests)
    finally:
        path.write_text(text, encoding="utf-8")
    return {PASSED: "UNSEEN", FAILED: "seen"}.get(code, f"pytest ended with {code}")


def main(sorts: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not sorts or mutant.sort in sorts]
    rows: list[list[str | float | None]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_tracked(folder)
        for tests in dict.fromkeys(mutant.tests for mutant in chosen):
            if (code := run_tests(folder, tests)) != PASSED:
                print(f"without a bug, pytest {tests.file} -k '{tests.select}' ends with {code}")
                return 1
        for number, mutant in enumerate(chosen, start=1):
            started = time.monotonic()
            verdict = judge(folder, mutant)
            rows.append([number, mutant.sort, mutant.path, mutant.before, verdict, round(time.monotonic() - started)])
            print(f"{number} of {len(chosen)}: {mutant.sort} in {mutant.path}: {verdict}", file=sys.stderr, flush=True)
    print(format_table(["bug", "sort", "file", "what is changed", "tests", "seconds"], rows))
    return 0 if rows and all(row[4] == "seen" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
