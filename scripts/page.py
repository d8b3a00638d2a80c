"""Writes a page in which a trained model writes. The code: lmlab/commands/page.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library beside this script

from lmlab.environment import imports

with imports():
    from lmlab.commands.door import run_command
    from lmlab.commands.page import main

if __name__ == "__main__":
    run_command(main)
