"""Runs a command that is asked to stop when the process that started it dies: ``python tether.py PARENT WORDS...``.

A study that is killed outright cannot tell its runs. The kernel of Linux does: it sends SIGTERM, at which a run saves
and ends. On other systems nothing is tied: a run goes on to its end, and the continued study waits for it.

A queue like Slurm's tells every process of a job of its time limit by SIGUSR2, which ends a process that does not know
it. The one that started the command answers for it, so the command ignores that signal.

Contract: nothing of this project is imported, so that the command starts milliseconds later.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG, SIGTERM = 1, 15


def main(parent: int, words: list[str]) -> None:
    """Become the command ``words``, tied to the process ``parent``."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(128 + SIGTERM)  # it died before this line
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # what is ignored stays ignored in the command
    os.execv(words[0], words)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
