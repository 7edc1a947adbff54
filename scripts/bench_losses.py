"""Measure the losses: ours, the eager formula, torch.compile of it, and Liger's kernels where they are installed.

    python scripts/bench_losses.py --csv scripts/measurements/losses_cpu.csv
    python scripts/bench_losses.py --objectives "[hinton_kd]" --shapes "[128x100]" --compile false
    for o in policy_kl hinton_kd jsd; do python scripts/bench_losses.py --device cuda --objectives "[$o]" \\
        --rounds 9 --seconds 540 --append --csv scripts/measurements/losses_cuda.csv; done

All contenders of a shape run in turn, in a new random order each round, and medians are reported; "of formula" is the
median of the ratios within each round: a machine that is slow for a while hardly changes it. Three kinds of work are
timed: the loss and its gradient (of the mean over the batch); the loss alone; and, on CUDA and for up to 2^20 scores,
the first replayed from a CUDA graph (for more scores, launches take no time worth saving). Where both sides fit into
the cache of a GPU, the share of the copy's bandwidth may be above 1. Liger's backward pass waits for the device, so it
is never replayed.
"one pass" is value_and_grad: loss and gradient without autograd; "compiled" is torch.compile of the formula, and "ours
compiled" that of ours. "bytes" counts each input read once and the gradient written once; "of copy" is the share of
the bandwidth of a plain copy, measured in the same run.

On Linux the process returns no memory to the system. Otherwise one contender would pay for new pages that the next one
finds ready, and that would decide the ratios of large scores.

The CSV is rewritten after each shape, so an interrupted run keeps what it has measured. On CUDA most of the time goes
into compiling, some ten seconds for each shape and type: hence one call for each objective above. Besides torch, Triton
and numpy it needs jsonargparse and pyyaml. For a machine without a network, run
`pip install --target FOLDER jsonargparse pyyaml` elsewhere, copy FOLDER, and set PYTHONPATH=FOLDER.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("runs", "jsonargparse", "yaml")

import csv
import ctypes
import importlib.util
import io
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from polydistill.config.parsing import parse
from polydistill.device import prepare, resolve_device, resolve_threads
from polydistill.disk import atomic_write
from polydistill.errors import require_at_least, require_choice, run_script
from polydistill.losses import OBJECTIVES, value_and_grad
from polydistill.provenance import git_state, hardware, versions
from polydistill.runs import format_table

SHAPES = ("32x18", "256x18", "2048x18", "128x100", "1024x100", "8192x100", "1024x1000", "4096x32000", "4096x131072")
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OPTIONS = {"policy_kl": {"temperature": 0.01}, "hinton_kd": {"temperature": 4.0}, "jsd": {"temperature": 1.0}}
Q_SCALE = 0.01  # of policy_kl's Q-values, equal to its temperature: its targets are as sure as those of the others
CONTENDERS = ("ours", "one pass", "ours compiled", "formula", "compiled", "liger")
UNCAPTURED = {"liger"}  # its backward pass looks at a value, which a capture does not allow
CAPTURED_SCORES = 2**20
M_TRIM_THRESHOLD, M_MMAP_MAX, LARGEST_INT = -1, -4, 2**31 - 1  # of glibc's malloc.h
COPIES_OF_SCORES = 8  # what a formula holds at once, in float32: both sides, their logarithms, gradients
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Works = dict[tuple[str, str], Callable[[], object]]  # (contender, work) -> what does it once


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and how long.

    Args:
        objectives: names out of policy_kl (T = 0.01, Q-values scaled to it), hinton_kd (T = 4, with labels) and jsd.
        shapes: rows x classes.
        types: float32 and bfloat16.
        device: auto, cpu or cuda.
        threads: processor threads of torch; 0: as many as there are cores.
        compile: measure torch.compile of the formula and of ours too, which takes some seconds per shape to compile.
        rounds: samples of each contender.
        milliseconds: length of a sample.
        seconds: begin no further shape after so many seconds; 0: no limit.
        csv: file for the raw measurements; empty: none.
        append: keep the rows of the CSV that this run does not measure again.
    """

    objectives: tuple[str, ...] = tuple(OPTIONS)
    shapes: tuple[str, ...] = SHAPES
    types: tuple[str, ...] = ("float32", "bfloat16")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    compile: bool = True
    rounds: int = 41
    milliseconds: int = 5
    seconds: int = 0
    csv: str = ""
    append: bool = False

    def __post_init__(self) -> None:
        require_at_least(1, self, "rounds", "milliseconds")
        require_at_least(0, self, "seconds")
        for name in self.objectives:
            require_choice("objective", name, OPTIONS)
        for name in self.types:
            require_choice("type", name, TYPES)
        for shape in self.shapes:
            if not all(part.isdecimal() and int(part) for part in shape.split("x")) or shape.count("x") != 1:
                raise ValueError(f"a shape is ROWSxCLASSES, got {shape!r}")


def formula_policy_kl(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """As one writes it."""
    log_q, log_p = student.float().log_softmax(1), (teacher.float() / 0.01).log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def formula_hinton_kd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The formula of timm's LogitDistillationTask, per sample, plus cross-entropy with the labels."""
    log_q, log_p = (student.float() / 4.0).log_softmax(1), (teacher.float() / 4.0).log_softmax(1)
    soft = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1) * 16.0
    return 0.9 * soft + 0.1 * F.cross_entropy(student.float(), labels, reduction="none")


def formula_jsd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """As one writes it."""
    log_q, log_p = student.float().log_softmax(1), teacher.float().log_softmax(1)
    log_m = torch.logaddexp(log_q, log_p) - 0.6931471805599453
    halves = [F.kl_div(log_m, log_x, reduction="none", log_target=True).sum(1) for log_x in (log_p, log_q)]
    return 0.5 * (halves[0] + halves[1])


FORMULAS: dict[str, Loss] = {"policy_kl": formula_policy_kl, "hinton_kd": formula_hinton_kd, "jsd": formula_jsd}


def liger_losses() -> dict[str, Loss]:
    """Liger's kernels, with the softmaxes that they leave to the caller."""
    if importlib.util.find_spec("liger_kernel") is None or not torch.cuda.is_available():
        return {}
    from liger_kernel.transformers import LigerJSD, LigerKLDIVLoss

    kl, jsd = LigerKLDIVLoss(reduction="batchmean", log_target=True), LigerJSD(beta=0.5)
    return {
        "policy_kl": lambda z, t, y: kl(z.float().log_softmax(1), (t.float() / 0.01).log_softmax(1)),
        "jsd": lambda z, t, y: jsd(z.float().log_softmax(1), t.float().log_softmax(1)),
    }


def works(objective: str, student: Tensor, teacher: Tensor, labels: Tensor, config: BenchConfig) -> Works:
    """What is timed of an objective and its scores."""
    function, options = OBJECTIVES[objective].function, OPTIONS[objective]
    losses: dict[str, Loss] = {
        "ours": (lambda z, t, y: function(z, t, y, **options))
        if "labels" in OBJECTIVES[objective].takes
        else (lambda z, t, y: function(z, t, **options)),
        "formula": FORMULAS[objective],
    }
    if config.compile:
        losses["compiled"] = torch.compile(FORMULAS[objective], dynamic=False)
        losses["ours compiled"] = torch.compile(losses["ours"], dynamic=False)
    if objective in (liger := liger_losses()):
        losses["liger"] = liger[objective]
    leaf = student.detach().requires_grad_()

    def full(loss: Loss) -> Callable[[], object]:
        def run() -> object:
            return torch.autograd.grad(loss(leaf, teacher, labels).mean(), leaf)

        return run

    found: Works = {}
    for name, loss in losses.items():
        found[name, "loss and gradient"] = full(loss)
        found[name, "loss"] = no_grad(loss, student, teacher, labels)
    weights = torch.full(student.shape[:1], 1.0 / len(student), device=student.device)
    found["one pass", "loss and gradient"] = lambda: value_and_grad(
        objective, student, teacher, labels, row_weights=weights, **options
    )
    return found


def no_grad(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> Callable[[], object]:
    """The loss alone."""

    def run() -> object:
        with torch.no_grad():
            return loss(student, teacher, labels)

    return run


def capture(run: Callable[[], object]) -> Callable[[], object]:
    """The same work, replayed from a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def captured(runs: Works) -> Works:
    """What can be replayed of loss and gradient; a work whose capture fails is left out."""
    found: Works = {}
    for (name, work), run in runs.items():
        if work == "loss" or name in UNCAPTURED:
            continue
        try:
            found[name, "replayed"] = capture(run)
        except RuntimeError as error:
            print(f"{name} cannot be captured: {str(error).splitlines()[0]}")
    return found


def wait(device: torch.device) -> None:
    """Until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def time_sample(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Microseconds per run, over ``repeats`` of them."""
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    wait(device)
    return (time.perf_counter() - started) / repeats * 1e6


def time_all(runs: Works, config: BenchConfig, device: torch.device) -> dict[tuple[str, str], list[float]]:
    """Microseconds of each work, ``rounds`` samples, in an order drawn again each round."""
    repeats = {}
    for key, run in runs.items():
        time_sample(run, 2, device)  # compiles
        once = time_sample(run, 3, device)
        repeats[key] = max(1, round(config.milliseconds * 1e3 / max(once, 1e-3)))
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    order, chance = list(runs), random.Random(0)
    for _ in range(config.rounds):
        chance.shuffle(order)
        for key in order:
            samples[key].append(time_sample(runs[key], repeats[key], device))
    return samples


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes above the inputs while it runs; None where that is not counted."""
    if device.type != "cuda":
        return None
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def keep_memory() -> None:
    """Let glibc keep what is freed, large tensors too; nothing elsewhere."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a plain copy of 512 MiB reads and writes, the median of 9."""
    source = torch.ones(2**27, device=device)
    target = torch.empty_like(source)
    seconds = statistics.median(time_sample(lambda: target.copy_(source), 3, device) for _ in range(9)) / 1e6
    return 2 * source.numel() * source.element_size() / seconds


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    words = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(words["MemAvailable"].split()[0]) * 1024


def measure(config: BenchConfig, device: torch.device) -> Iterator[list[dict]]:
    """The rows of one objective, shape and type after the other: one per contender and work."""
    started = time.perf_counter()
    copy = copy_bandwidth(device)
    for objective in config.objectives:
        for shape in config.shapes:
            rows, classes = map(int, shape.split("x"))
            if rows * classes * 4 * COPIES_OF_SCORES > free_bytes(device):
                print(f"{shape} does not fit into the free memory: left out")
                continue
            for kind in config.types:
                if config.seconds and time.perf_counter() - started > config.seconds:
                    print(f"{config.seconds} s are over: left out from {objective}, {shape}, {kind} on")
                    return
                try:
                    yield measure_one(objective, (rows, classes), kind, config, device, copy)
                except torch.OutOfMemoryError:
                    print(f"{shape} in {kind} does not fit into the memory: left out")


def measure_one(
    objective: str, shape: tuple[int, int], kind: str, config: BenchConfig, device: torch.device, copy: float
) -> list[dict]:
    """The rows of one shape and type."""
    generator = torch.Generator(device).manual_seed(0)
    student, teacher = (
        torch.randn(*shape, device=device, generator=generator).mul_(2).to(TYPES[kind]) for _ in ("student", "teacher")
    )
    if objective == "policy_kl":
        teacher = teacher * Q_SCALE
    labels = torch.randint(shape[1], shape[:1], device=device, generator=generator)
    runs = works(objective, student, teacher, labels, config)
    if device.type == "cuda" and student.numel() <= CAPTURED_SCORES:
        runs |= captured(runs)
    found, samples = [], time_all(runs, config, device)
    for (contender, work), times in samples.items():
        size = student.numel() * student.element_size() * (2 if work == "loss" else 3)
        low, _, _, _, high = statistics.quantiles(times, n=6) if len(times) > 1 else times * 5
        median, beside = statistics.median(times), samples.get(("formula", work))
        ratios = [] if beside is None else [a / b for a, b in zip(times, beside, strict=True)]
        found.append(
            {
                "objective": objective,
                "shape": f"{shape[0]}x{shape[1]}",
                "type": kind,
                "contender": contender,
                "work": work,
                "median_us": round(median, 2),
                "low_us": round(low, 2),
                "high_us": round(high, 2),
                "of_formula": round(statistics.median(ratios), 4) if ratios else None,
                "bytes": size,
                "of_copy": round(size / (median / 1e6) / copy, 4),
                "peak_bytes": None if work == "replayed" else peak_memory(runs[contender, work], device),
                "copy_bytes_per_second": round(copy),
            }
        )
    torch.compiler.reset()
    return found


def format_result(rows: list[dict]) -> str:
    """Medians in microseconds, ours as a ratio to the formula, and the share of the copy's bandwidth."""
    groups: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        groups.setdefault((row["objective"], row["shape"], row["type"], row["work"]), {})[row["contender"]] = row
    present = {row["contender"] for row in rows}
    names = [name for name in CONTENDERS if name in present]
    table = []
    for key, found in groups.items():
        times = [found[name]["median_us"] if name in found else None for name in names]
        ratio = found.get("ours", {}).get("of_formula")  # none where a capture failed
        shares = [f"{found[name]['of_copy']:.0%}" if name in found else None for name in ("ours", "one pass")]
        table.append([*key, *times, None if ratio is None else f"{ratio:.2f}", *shares])
    headers = ["objective", "shape", "type", "work", *names]
    return format_table([*headers, "ours / formula", "ours of copy", "one pass of copy"], table)


def kept_rows(config: BenchConfig) -> list[dict]:
    """What the CSV holds already, where it is to be kept."""
    path = Path(config.csv)
    if not (config.append and config.csv and path.exists()):
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, kept: list[dict], found: list[dict]) -> None:
    """All that was found, and what was kept of objectives, shapes and types that were not measured again."""

    def cell(row: dict) -> tuple:
        return row["objective"], row["shape"], row["type"]

    measured = {cell(row) for row in found}
    rows = [row for row in kept if cell(row) not in measured] + found
    columns = dict.fromkeys(name for row in [*found, *rows] for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue().encode())


@run_script
def main(argv: list[str] | None = None) -> None:
    config = parse(
        BenchConfig, argv, program="python scripts/bench_losses.py", description=__doc__, default_name=None
    ).config
    kind, threads = resolve_device(config.device), resolve_threads(config.threads)
    device = prepare(kind, threads)
    known = {"device": kind, "threads": threads, **hardware(), **versions("liger_kernel"), **git_state_of(git_state())}
    keep_memory()
    kept, found = kept_rows(config), []
    for rows in measure(config, device):
        found += [row | known for row in rows]
        if config.csv:
            write_csv(Path(config.csv), kept, found)
    print(f"{kind}, {threads} threads; microseconds, medians of {config.rounds} samples\n")
    print(format_result(found))


def git_state_of(state: dict | None) -> dict:
    """The commit as columns."""
    return {"commit": None, "dirty": None} if state is None else dict(state)


if __name__ == "__main__":
    main()
