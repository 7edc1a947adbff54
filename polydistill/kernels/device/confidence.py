"""The teacher's confidence in each row: max p, p = softmax(t), which is 1 over the sum of exp(t - max t)."""

import triton
import triton.language as tl

from polydistill.kernels.device.rows import inverse
from polydistill.kernels.device.sides import measure_softmax, open_teacher


@triton.jit(do_not_specialize=["n_rows"])
def confidence_kernel(
    teacher_ptr,  # (MEMBERS, rows, cols) in, float32, bfloat16 or float16
    confidence_ptr,  # (rows,) out, float32
    n_rows,
    n_cols,
    teacher_member,
    teacher_row,
    teacher_col,
    MEMBERS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    teacher, no_mask = (teacher_ptr, teacher_row, teacher_col, teacher_member), (teacher_ptr, 0, 0)
    teacher, scale = open_teacher(teacher, no_mask, rows, n_rows, n_cols, 1.0, False, MEMBERS, ROWS, COLS)
    _, total = measure_softmax(teacher, no_mask, rows, n_rows, n_cols, scale, False, MEMBERS, ROWS, COLS)
    confidence = tl.where(total == 0, float("nan"), inverse(total))  # a row of nothing but -inf becomes NaN
    tl.store(confidence_ptr + rows, confidence, mask=rows < n_rows)
