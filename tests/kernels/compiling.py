"""Compile the kernels for a GPU where there is none, with the arguments of real launches.

    python -m tests.kernels.compiling 1000 131072       rows of so many classes

Prints ``kind classes bytes`` for each kernel: the size of its machine code. Triton must be imported without its
interpreter, hence a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from polydistill.kernels import launch

CHIP = GPUTarget("cuda", 90, 32)  # H100, H200
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
}


class Compiler:
    """Stands for a kernel: its launch compiles it."""

    def __init__(self, kernel: Any, compiled: list[Any]) -> None:
        self.kernel, self.compiled = kernel, compiled

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self._compile

    def _compile(self, *given: Any, num_warps: int, **constants: Any) -> None:
        arguments = dict(zip(self.kernel.arg_names, given, strict=False)) | constants
        fixed = constants | {name: 1 for name, value in arguments.items() if type(value) is int and value == 1}
        signature = {
            name: "constexpr" if name in fixed else self._type(arguments[name]) for name in self.kernel.arg_names
        }
        source = ASTSource(self.kernel, signature, constexprs=fixed)
        self.compiled.append(triton.compile(source, target=CHIP, options={"num_warps": num_warps}))

    def _type(self, value: Any) -> str:
        if isinstance(value, Tensor):
            return TYPES[value.dtype]
        return "fp32" if isinstance(value, float) else "i32"


def compile_kind(kind: str, n_classes: int) -> Any:
    """What a launch for loss, gradient and diagnostics of 512 rows in bfloat16 compiles."""
    compiled: list[Any] = []
    original = launch.load_kernel
    launch.load_kernel = lambda module, name: Compiler(original(module, name), compiled)
    try:
        scores = torch.empty(512, n_classes, dtype=torch.bfloat16)
        rows = launch.Rows(
            scores,
            torch.empty_like(scores),
            labels=torch.empty(512, dtype=torch.int64),
            permutation=torch.empty(512, n_classes - 1, dtype=torch.int64) if kind == "permuted" else None,
            values=torch.empty(512) if kind == "rest" else None,
        )
        numbers = (0.5,) * len(launch.KINDS[kind].numbers)
        launch.launch(
            kind, numbers, rows, loss=True, gradient=True, upstream=torch.empty(512), diagnostics_temperature=0.5
        )
    finally:
        launch.load_kernel = original
    (one,) = compiled
    return one


if __name__ == "__main__":
    for size in map(int, sys.argv[1:]):
        for name in launch.KINDS:
            if launch.fits(name, size, 2):
                print(name, size, len(compile_kind(name, size).asm["cubin"]), flush=True)
