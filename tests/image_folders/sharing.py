"""scripts/distill_images.py as one of the processes of torchrun; the operators that torchvision lacks are defined."""

import runpy
import sys
from pathlib import Path

from tests.image_folders.operators import define_operators

define_operators()
script = Path(__file__).resolve().parents[2] / "scripts" / "distill_images.py"
runpy.run_path(str(script))["main"](sys.argv[1:])
