"""Compile the kernels for a GPU where there is none, with the arguments of real launches.

    python -m tests.kernels.compiling 1000 131072       rows of so many classes
    python -m tests.kernels.compiling variants          of other types, with masks and ensembles; and the confidence

Prints ``kind classes registers spilled`` for each kernel: what a thread takes, and the bytes that it keeps in memory
for want of registers. Triton must be imported without its interpreter, hence a process of its own.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from polydistill.kernels import launch, plan, prepared

CHIP = GPUTarget("cuda", 90, 32)  # H100, H200
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.bool: "*i1",
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
        aligned = {
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(self.kernel.arg_names)
            if name not in fixed and self._is_aligned(name, arguments[name])
        }
        source = ASTSource(self.kernel, signature, constexprs=fixed, attrs=aligned)
        self.compiled.append(triton.compile(source, target=CHIP, options={"num_warps": num_warps}))

    def _is_aligned(self, name: str, value: Any) -> bool:
        """Whether a launch would tell the compiler that it is divisible by 16, so that it reads several at once."""
        return isinstance(value, Tensor) or (type(value) is int and value % 16 == 0 and name != "n_rows")

    def _type(self, value: Any) -> str:
        if isinstance(value, Tensor):
            return TYPES[value.dtype]
        return "fp32" if isinstance(value, float) else "i32"


class Variant(NamedTuple):
    """What differs from a launch in bfloat16 with one teacher of the same type and no mask."""

    kind: str
    n_classes: int
    dtype: torch.dtype = torch.bfloat16
    members: int = 1
    masked: bool = False
    teacher: torch.dtype | None = None
    diagnosed: bool = True  # long rows that are not have a kernel of their own


VARIANTS = (
    Variant("kl", 100, torch.float32, members=3, masked=True),
    Variant("jsd", 100, members=3),
    Variant("rest", 100, members=5),
    Variant("kl", 32_000, members=3),
    Variant("jsd", 32_000, members=3),
    Variant("permuted", 32_000, members=3),
    Variant("decoupled", 32_000, members=3),
    Variant("kl_label", 1),
    Variant("mse", 100, torch.float16, masked=True),
    Variant("best", 100, masked=True, teacher=torch.float32),
    Variant("permuted", 100, teacher=torch.float32),
    Variant("rest", 100, teacher=torch.float32),
    Variant("decoupled", 100, teacher=torch.float32),
    Variant("kl", 1000, torch.float32, members=3, masked=True),
    Variant("jsd", 1000, torch.float32, members=3, masked=True),
    Variant("decoupled", 1000, torch.float32, members=3),
    Variant("jsd", 8192, members=10),
    Variant("kl", 32_000, diagnosed=False),
    Variant("kl", 32_000, torch.float32, diagnosed=False),
    Variant("kl_label", 32_000, diagnosed=False),
    Variant("kl_label", 32_000, torch.float32, diagnosed=False),
    Variant("soft_label", 32_000, torch.float16, teacher=torch.float32, diagnosed=False),
    Variant("label", 131_072, diagnosed=False),
)


@contextlib.contextmanager
def compiling() -> Iterator[list[Any]]:
    """While this lasts, a launch compiles instead of running; the list fills with what it compiles."""
    compiled: list[Any] = []
    original = prepared.load_kernel
    prepared.load_kernel = lambda module, name: Compiler(original(module, name), compiled)
    prepared.PREPARED.clear()
    try:
        yield compiled
    finally:
        prepared.load_kernel = original
        prepared.PREPARED.clear()


def compile_kind(
    kind: str,
    n_classes: int,
    dtype: torch.dtype,
    members: int,
    masked: bool,
    teacher: torch.dtype | None,
    diagnosed: bool,
) -> Any:
    """What a launch for loss, gradient and perhaps diagnostics of 512 rows compiles."""
    with compiling() as compiled:
        scores = torch.empty(512, n_classes, dtype=dtype)
        rows = launch.Rows(
            scores,
            torch.empty(scores.shape if members == 1 else (members, *scores.shape), dtype=teacher or dtype),
            labels=torch.empty(512, dtype=torch.int64),
            mask=torch.empty(512, n_classes, dtype=torch.bool) if masked else None,
            permutation=torch.empty(512, n_classes - 1, dtype=torch.int64) if kind == "permuted" else None,
            values=torch.empty(512) if kind == "rest" else None,
        )
        numbers = plan.KINDS[kind].numbers
        launch.launch(
            kind,
            numbers(*[0.5] * len(numbers._fields)),
            rows,
            loss=True,
            gradient=True,
            upstream=torch.empty(512),
            diagnostics_temperature=0.5 if diagnosed else None,
        )
    (one,) = compiled
    return one


def compile_confidence(n_classes: int, members: int) -> Any:
    """What a launch of the confidence of 512 rows compiles."""
    shape = (512, n_classes) if members == 1 else (members, 512, n_classes)
    with compiling() as compiled:
        launch.launch_confidence(torch.empty(shape, dtype=torch.bfloat16))
    (one,) = compiled
    return one


def count_registers(compiled: Any) -> tuple[int, int]:
    """Registers of a thread, and bytes that it stores for want of more."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as source:
        source.write(compiled.asm["ptx"])
        source.flush()
        command = [get_ptxas(CHIP.arch).path, "-v", "--gpu-name=sm_90a", source.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = re.search(r"Used (\d+) registers", report), re.search(r"(\d+) bytes spill stores", report)
    assert registers is not None
    assert spilled is not None
    return int(registers[1]), int(spilled[1])


def variants_of(words: list[str]) -> list[Variant]:
    """What the words of the command line ask for, but for the confidence."""
    if words == ["variants"]:
        return list(VARIANTS)
    return [Variant(kind, size) for size in map(int, words) for kind in plan.KINDS]


if __name__ == "__main__":
    for variant in variants_of(sys.argv[1:]):
        print(variant.kind, variant.n_classes, *count_registers(compile_kind(*variant)), flush=True)
    for n_classes, members in ((18, 1), (18, 3), (131_072, 3)) if sys.argv[1:] == ["variants"] else ():
        print("confidence", n_classes, *count_registers(compile_confidence(n_classes, members)), flush=True)
