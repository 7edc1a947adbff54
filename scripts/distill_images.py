"""See polydistill/image_folders/commands/distill_images.py, or --help."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("timm")

from polydistill.image_folders.commands.distill_images import main

if __name__ == "__main__":
    main()
