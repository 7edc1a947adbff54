"""See polydistill/hub/push_to_hub.py, or --help."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("runs")

from polydistill.hub.push_to_hub import main

if __name__ == "__main__":
    main()
