"""See polydistill/vision/commands/together_cifar.py, or --help."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("vision")

from polydistill.vision.commands.together_cifar import main

if __name__ == "__main__":
    main()
