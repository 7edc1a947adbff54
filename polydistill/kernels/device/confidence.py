"""The teacher's confidence in each row: max p, p = softmax(t), which is 1 over the sum of exp(t - max t)."""

import triton
import triton.language as tl

from polydistill.kernels.device.diagnostics import measure_softmax
from polydistill.kernels.device.rows import inverse


@triton.jit(do_not_specialize=["n_rows"])
def confidence_kernel(
    teacher_ptr,  # (rows, cols) in, float32, bfloat16 or float16
    confidence_ptr,  # (rows,) out, float32
    n_rows,
    n_cols,
    teacher_row,
    teacher_col,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    _, total = measure_softmax(
        teacher_ptr, teacher_ptr, rows, n_rows, n_cols, teacher_row, teacher_col, 0, 0, 1.0, False, ROWS, COLS
    )
    confidence = tl.where(total == 0, float("nan"), inverse(total))  # scores of -inf alone are to be seen
    tl.store(confidence_ptr + rows, confidence, mask=rows < n_rows)
