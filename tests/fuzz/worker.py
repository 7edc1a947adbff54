"""Reads the files named on standard input, one a line, and answers each with one line: what came of it.

Runs in a process of its own, which may take at most 1 GiB of memory more than it has after the sound files. From then
on an audit hook writes down whatever reading a file as data has no need of: imports, files opened for writing,
processes, connections, code compiled.
"""

from __future__ import annotations

import encodings.cp437  # noqa: F401  # of old zips' names; whatever else is imported later is a fault
import os
import resource
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from polydistill.errors import UserError
from polydistill_agents.files.inspection import inspect_agent
from polydistill_agents.files.normalization import read_statistics
from polydistill_agents.networks.observations import example, to_tensors
from polydistill_agents.teachers import as_teacher

GROWTH_BYTES = 2**30
FORBIDDEN = ("subprocess.", "socket.", "shutil.", "ctypes.", "urllib.", "ftplib.", "sqlite3.", "webbrowser.")
OS_CALLS = {f"os.{name}" for name in (
    "system", "exec", "fork", "forkpty", "posix_spawn", "spawn", "startfile", "kill", "killpg", "putenv", "remove",
    "rename", "rmdir", "mkdir", "link", "symlink", "truncate", "chmod", "chown", "utime", "setxattr",
)}  # fmt: skip
CODE = {"compile", "exec", "pickle.find_class", "marshal.loads", "code.__new__", "function.__new__"}
seen: list[str] = []
watching = False


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Write down what a file that is only read would never cause."""
    if not watching:
        return
    if event == "import" and arguments[0] not in sys.modules:
        seen.append(f"import {arguments[0]}")
    elif event == "open":
        path, mode, flags = (*arguments, None, None)[:3]
        writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if writing or (isinstance(mode, str) and set(mode) & set("wax+")):
            seen.append(f"open {path!r} {mode!r}")
    elif event in CODE or event in OS_CALLS or event.startswith(FORBIDDEN):
        seen.append(f"{event} {str(arguments)[:80]}")


def read(path: str) -> str:
    """ "network", or the line with which the file is refused; of statistics "network" says that they are read."""
    if path.endswith(".pkl"):
        return _read_statistics(path)
    name = "acktr:" + path if path.endswith(".pth") else path
    try:
        teacher = as_teacher(name)
    except UserError as error:
        return str(error)
    network = teacher.network
    assert network is not None
    space: Any = network.observation_space
    seen = to_tensors(example(space, 2), "cpu")
    teacher.begin(2)
    for scores in (teacher(seen), teacher.label(seen, [True, False])):
        assert scores.dim() == 2
        assert len(scores) == 2
    return "network"


def _read_statistics(path: str) -> str:
    try:
        statistics = read_statistics(Path(path))
    except UserError as error:
        return str(error)
    if statistics is not None:
        assert statistics.mean.shape == statistics.variance.shape
        assert statistics.mean.dtype == statistics.variance.dtype == "float64"
    return "network"


def tell(path: str) -> str:
    """The inspection of the same file must end as well: with these words."""
    if path.endswith(".pkl"):  # it lies beside an agent, and is none
        return ""
    try:
        lines = inspect_agent("acktr:" + path if path.endswith(".pth") else path)
    except UserError as error:
        return str(error)
    return "; ".join(" ".join(line) for line in lines)


def answer(path: str) -> str:
    """One line: the outcome, or what is wrong with it."""
    seen.clear()
    try:
        outcome = read(path)
        told = tell(path)
    except BaseException as error:
        return f"FAULT {type(error).__name__}: {error}".replace("\n", " ")
    if seen:
        return "FAULT " + "; ".join(seen[:5])
    for text in (outcome, told):
        if not text.isprintable() or "MemoryError" in text or "allocate" in text:
            return f"FAULT {text[:300]!r}"
    return outcome[:300]


def main() -> None:
    global watching
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.addaudithook(hook)
    for path in sorted(Path(sys.argv[1]).iterdir()):  # sound files: all that is imported late is there after them
        print("ready" if answer(str(path)) == "network" else f"FAULT seed {path}: {answer(str(path))}", flush=True)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + GROWTH_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    watching = True
    for line in sys.stdin:
        print(answer(line.rstrip("\n")), flush=True)


if __name__ == "__main__":
    main()
