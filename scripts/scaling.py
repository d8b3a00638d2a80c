"""Fits the law of scaling to runs. The code: lmlab/commands/scaling.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library beside this script

from lmlab.environment import imports

with imports():
    from lmlab.commands.door import run_command
    from lmlab.commands.scaling import main

if __name__ == "__main__":
    run_command(main)
