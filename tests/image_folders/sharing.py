"""scripts/distill_images.py as one of the processes of torchrun; the operators that torchvision lacks are defined."""

import runpy
import sys
from pathlib import Path
from typing import Any

from polydistill.modules import workshop
from tests.operators import define_operators

define_operators()
shard = workshop.shard


def tell(*words: Any) -> None:
    """Say what is sharded, which the run's files do not show."""
    shard(*words)
    print("sharded", words[-1], file=sys.stderr)


workshop.shard = tell
script = Path(__file__).resolve().parents[2] / "scripts" / "distill_images.py"
runpy.run_path(str(script))["main"](sys.argv[1:])
